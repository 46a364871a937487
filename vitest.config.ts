import { defineConfig } from 'vitest/config'

const project = (name: string, testTimeout: number, parallel: boolean) => ({
  test: { name, include: [`test/${name}/**/*.test.ts`], testTimeout, hookTimeout: testTimeout, fileParallelism: parallel }
})

// One folder of test/ is one project. Those that start processes, mounts or machines run one file at a time: two cores.
export default defineConfig({
  test: {
    projects: [
      project('unit', 20_000, true),
      project('simulation', 60_000, true),
      project('fuzz', 60_000, true),
      project('kernel', 120_000, false),
      project('system', 600_000, false)
    ]
  }
})
