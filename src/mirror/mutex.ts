/** One at a time, in order of asking. */
export class Mutex {
  #last: Promise<unknown> = Promise.resolve()

  async run<T> (work: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(work)
    this.#last = mine.catch(() => {})
    return await mine
  }
}
