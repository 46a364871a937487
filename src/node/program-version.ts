/** The build writes package.json's version in its place (scripts/build.ts); from the sources it is a development version. */
export const PROGRAM_VERSION = process.env.P2PVM_VERSION ?? 'development'
