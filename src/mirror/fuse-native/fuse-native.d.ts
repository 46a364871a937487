/** What we use of fuse-native 2.2, which has no types of its own, and of what lies under its documented surface. */
declare module 'fuse-native' {
  /** A negative errno, or what the operation gives: 0, a number of bytes. */
  export type Done = (result: number) => void
  export type Answer<T> = (result: number, value?: T) => void
  /** The same, to the native half: with the buffer that the request came with, which is not to be touched any more. */
  export type Signal = (result: number, room: ArrayBufferLike) => void

  export interface Stat {
    readonly mode: number
    readonly uid: number
    readonly gid: number
    readonly size: number
    readonly nlink: number
    readonly blksize: number
    readonly blocks: number
    readonly atime: number // milliseconds, as the others
    readonly mtime: number
    readonly ctime: number
  }

  export interface StatFs {
    readonly bsize: number
    readonly frsize: number
    readonly blocks: number // 32 bits, as all of them
    readonly bfree: number
    readonly bavail: number
    readonly files: number
    readonly ffree: number
    readonly favail: number
    readonly namemax: number
  }

  export interface Handlers {
    getattr (path: string, done: Answer<Stat>): void
    fgetattr (path: string, handle: number, done: Answer<Stat>): void
    readlink (path: string, done: Answer<string>): void
    readdir (path: string, done: Answer<string[]>): void
    open (path: string, flags: number, done: Answer<number>): void
    release (path: string, handle: number, done: Done): void
    read (path: string, handle: number, room: Buffer, length: number, offset: number, done: Done): void
    write (path: string, handle: number, bytes: Buffer, length: number, offset: number, done: Done): void
    flush (path: string, handle: number, done: Done): void
    fsync (path: string, onlyBytes: number, handle: number, done: Done): void
    statfs (path: string, done: Answer<StatFs>): void
    truncate (path: string, size: number, done: Done): void
    ftruncate (path: string, handle: number, size: number, done: Done): void
    utimens (path: string, atimeMs: number, mtimeMs: number, done: Done): void
    chmod (path: string, mode: number, done: Done): void
    chown (path: string, uid: number, gid: number, done: Done): void
    setxattr (path: string, name: string, value: Buffer, position: number, flags: number, done: Done): void
    getxattr (path: string, name: string, position: number, done: Answer<Buffer>): void
    listxattr (path: string, done: Answer<string[]>): void
    removexattr (path: string, name: string, done: Done): void
    create (path: string, mode: number, done: Done): void
    mknod (path: string, mode: number, device: number, done: Done): void
    mkdir (path: string, mode: number, done: Done): void
    symlink (from: string, to: string, done: Done): void
    link (from: string, to: string, done: Done): void
    rename (from: string, to: string, done: Done): void
    unlink (path: string, done: Done): void
    rmdir (path: string, done: Done): void
  }

  class Fuse {
    constructor (mountpoint: string, handlers: Handlers, options: { readonly timeout: false })
    static unmount: (mountpoint: string, done: (error: Error | null) => void) => void
    mount (done: (error: Error | null) => void): void
    unmount (done: (error: Error | null) => void): void
    _fuseOptions: () => string
    _op_getxattr: (signal: Signal, path: string, name: string, room: Buffer, position: number) => void
    _op_listxattr: (signal: Signal, path: string, room: Buffer) => void
  }

  export default Fuse
}
