/**
 * Counts what vitest ran, for `scripts/test`, which prints the sum after everything else: writes `PASSED FAILED` to the file
 * that P2PVM_TEST_COUNTS names. A file that does not load, and an error outside of any test, count as one failure each.
 */
import { writeFileSync } from 'node:fs'
import type { Reporter, TestModule } from 'vitest/node'

export default class ClosingReporter implements Reporter {
  onTestRunEnd (modules: readonly TestModule[], unhandledErrors: readonly unknown[]): void {
    const path = process.env['P2PVM_TEST_COUNTS']
    if (path === undefined) return
    let passed = 0
    let failed = unhandledErrors.length
    for (const module of modules) {
      const tests = [...module.children.allTests()]
      const failures = tests.filter((test) => test.result().state === 'failed').length
      passed += tests.filter((test) => test.result().state === 'passed').length
      failed += failures === 0 && module.state() === 'failed' ? 1 : failures
    }
    writeFileSync(path, `${passed} ${failed}\n`)
  }
}
