/**
 * What the types cannot say: the order of the rooms (node → mirror → versioning → dht → protocols), who may touch the
 * network, the disk, the clock and chance, and the house style.
 */
import { globalIgnores } from 'eslint/config'
import tseslint from 'typescript-eslint'

/** Lower rooms first: each may import those before it. */
const ROOMS = ['protocols', 'dht', 'versioning', 'mirror', 'node']

const LIBP2P = ['libp2p', 'libp2p/*', '@libp2p/*', '@chainsafe/*', '@multiformats/*']
const DISK = ['node:fs', 'node:fs/promises', 'fs', 'fs/promises', 'node:child_process', 'lmdb']

const libp2pPattern = { group: LIBP2P, message: 'libp2p stays behind the transport and the membership (protocols/libp2p-transport.ts, dht/kad-*.ts) and in node/.' }
const diskPattern = { group: DISK, message: 'The disk is handed in (protocols/seams.ts): this code also runs over a simulated one.' }
/** `../dht/x.ts` from inside a room, at any depth. */
const upperRooms = (room) => ROOMS.slice(ROOMS.indexOf(room) + 1).map((upper) => ({
  regex: `^(\\.\\./)+${upper}/`,
  message: `${room}/ is below ${upper}/: imports go node → mirror → versioning → dht → protocols.`
}))

const imports = (...patterns) => ({ 'no-restricted-imports': ['error', { patterns }] })

const WORLD = 'comes from the clock or the randomness that this code is handed (protocols/seams.ts): it also runs under a simulated one.'
const worldGlobals = ['setTimeout', 'setInterval', 'setImmediate', 'performance'].map((name) => ({ name, message: `Time ${WORLD}` }))
const worldProperties = [
  { object: 'Date', property: 'now', message: `Time ${WORLD}` },
  { object: 'Math', property: 'random', message: `Chance ${WORLD}` },
  { object: 'AbortSignal', property: 'timeout', message: `Time ${WORLD}` }
]
const syntax = [
  // Node 22 runs our sources as they are, and its V8 does not know it yet.
  { selector: 'VariableDeclaration[kind=/using/]', message: 'Node 22 cannot run `using`: call [Symbol.dispose]() in a finally.' }
]
const newDate = { selector: 'NewExpression[callee.name="Date"][arguments.length=0]', message: `Time ${WORLD}` }

export default tseslint.config(
  globalIgnores(['dist/', 'node_modules/', 'coverage/']),
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.base],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      // Promises that nobody waits for, and values taken for promises, are how errors get lost.
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/await-thenable': 'error',
      '@typescript-eslint/return-await': ['error', 'always'],
      '@typescript-eslint/only-throw-error': 'off', // an AbortSignal's reason is unknown, and thrown on
      '@typescript-eslint/prefer-promise-reject-errors': 'off',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      '@typescript-eslint/no-unnecessary-type-assertion': 'error',
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-unsafe-return': 'error',
      '@typescript-eslint/consistent-type-imports': ['error', { fixStyle: 'inline-type-imports', disallowTypeAnnotations: false }],
      '@typescript-eslint/no-import-type-side-effects': 'error',
      '@typescript-eslint/prefer-readonly': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_', caughtErrors: 'none', ignoreRestSiblings: true }],
      'max-lines': ['error', 450],
      'no-restricted-syntax': ['error', ...syntax],
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'no-var': 'error',
      'prefer-const': 'error',
      'no-console': 'off',
      // Style: eslint has these built in, and nothing more is needed.
      semi: ['error', 'never'],
      quotes: ['error', 'single', { avoidEscape: true, allowTemplateLiterals: true }],
      'no-trailing-spaces': 'error',
      'eol-last': 'error',
      'comma-dangle': ['error', 'never'],
      'space-before-function-paren': ['error', 'always']
    }
  },
  // What a test reads out of JSON it compares, and so checks.
  { files: ['test/**/*.ts'], rules: { '@typescript-eslint/no-unsafe-return': 'off' } },
  ...ROOMS.filter((room) => room !== 'node').map((room) => ({
    files: [`src/${room}/**/*.ts`],
    rules: {
      // The mirror serves descriptors: there the disk is the kernel's.
      ...imports(...upperRooms(room), libp2pPattern, ...(room === 'mirror' ? [] : [diskPattern])),
      'no-restricted-globals': ['error', ...worldGlobals],
      'no-restricted-properties': ['error', ...worldProperties],
      'no-restricted-syntax': ['error', ...syntax, newDate]
    }
  })),
  // The files that are the seams' real side, or libp2p's.
  {
    files: ['src/protocols/libp2p-*.ts'],
    rules: { ...imports(...upperRooms('protocols'), diskPattern), 'no-restricted-globals': 'off', 'no-restricted-properties': 'off' }
  },
  { files: ['src/dht/kad-*.ts'], rules: imports(...upperRooms('dht'), diskPattern) },
  { files: ['src/dht/node-disk.ts', 'src/dht/directory-sync.ts', 'src/dht/lmdb-*.ts'], rules: imports(...upperRooms('dht'), libp2pPattern) }
)
