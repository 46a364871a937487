/** The version manager as tests ask it, without a transport: what it answers is decoded, and every peer has the key of its name. */
import type { RequestContext } from '../../src/protocols/transport.ts'
import type { VersionAnswer, VersionRequest } from '../../src/protocols/version-protocol.ts'
import { type Assignment, assignmentOf } from '../../src/versioning/assignment.ts'
import type { Version } from '../../src/versioning/blobs.ts'
import type { Credentials } from '../../src/versioning/certificates.ts'
import { decodeHeader } from '../../src/versioning/publication-codec.ts'
import type { VersionManager } from '../../src/versioning/version-manager.ts'
import { namedSigner } from './signers.ts'

export type AssignRequest = Omit<VersionRequest<'assign'>, 'writerKey'>
export type AssignGroupRequest = Omit<VersionRequest<'assignGroup'>, 'writerKey'>

const decoded = (signed: Uint8Array): Version => decodeHeader(signed).version

export class AskedManager {
  readonly service: VersionManager

  constructor (service: VersionManager) {
    this.service = service
  }

  async recover (): Promise<void> {
    await this.service.recover()
  }

  async stop (): Promise<void> {
    await this.service.stop()
  }

  async create (request: VersionRequest<'create'>, context: RequestContext): Promise<{ version: Version }> {
    return { version: decoded((await this.service.create(request, context)).version) }
  }

  async assign (request: AssignRequest, context: RequestContext, signer = namedSigner(context.peer)): Promise<Assignment & { credentials: Credentials }> {
    const { assignment, credentials } = assignmentOf(await this.service.assign({ ...request, writerKey: signer.publicKey }, context), signer)
    return { ...assignment, credentials }
  }

  async assignGroup (request: AssignGroupRequest, context: RequestContext, signer = namedSigner(context.peer)): Promise<{ members: Array<Assignment & { credentials: Credentials }> }> {
    const { members } = await this.service.assignGroup({ ...request, writerKey: signer.publicKey }, context)
    return { members: members.map((one) => assignmentOf(one, signer)).map(({ assignment, credentials }) => ({ ...assignment, credentials })) }
  }

  async renew (request: VersionRequest<'renew'>): Promise<VersionAnswer<'renew'>> {
    return await this.service.renew(request)
  }

  async complete (request: VersionRequest<'complete'>, context: RequestContext): Promise<{ published: Version | null }> {
    const { published } = await this.service.complete(request, context)
    return { published: published && decoded(published) }
  }

  async completeGroup (request: VersionRequest<'completeGroup'>): Promise<{ published: Array<Version | null> }> {
    const { published } = await this.service.completeGroup(request)
    return { published: published.map((one) => one && decoded(one)) }
  }

  async wait (request: VersionRequest<'wait'>, context: RequestContext): Promise<{ published: Version | null }> {
    const { published } = await this.service.wait(request, context)
    return { published: published && decoded(published) }
  }

  async recent (request: VersionRequest<'recent'>): Promise<{ version: Version }> {
    return { version: decoded((await this.service.recent(request)).version) }
  }

  async resolve (request: VersionRequest<'resolve'>): Promise<{ version: Version }> {
    return { version: decoded((await this.service.resolve(request)).version) }
  }

  async images (request: VersionRequest<'images'>): Promise<{ images: Array<{ name: string, latest: Version }> }> {
    const { images } = await this.service.images(request)
    return { images: images.map(({ name, latest }) => ({ name, latest: decoded(latest) })) }
  }

  async log (request: VersionRequest<'log'>): Promise<{ versions: Version[] }> {
    return { versions: (await this.service.log(request)).versions.map(decoded) }
  }

  async outcome (request: VersionRequest<'outcome'>): Promise<VersionAnswer<'outcome'>> {
    return await this.service.outcome(request)
  }
}
