/**
 * Allocations over the manager's HTTP interface (C1): created, resized, listed, described, removed by path, without a mount.
 * Failures are ExtmemErrors with the manager's code and message; EUNREACHABLE when no manager answers.
 */
import { Type, type Static, type TSchema } from '@sinclair/typebox';
import { Value } from '@sinclair/typebox/value';
import { ExtmemError } from '../base/errors.js';
import { askManager, type ManagerAddress } from '../base/manager_http.js';
import { Attr } from '../base/messages.js';

const LIST_PAGE = 1000;

export const AllocationInfo = Type.Object({
  path: Type.String(),
  ino: Type.Integer(),
  /** Size of the file. */
  bytes: Type.Integer(),
  /** Memory that it occupies in the pool. */
  allocatedBytes: Type.Integer(),
  /** stripe, concat, mirror, raid10; with copies as in mirror:3. */
  layout: Type.String(),
  /** Who may do what, by rules; '': whoever has the join token, everything. */
  access: Type.String(),
  /** Has regions of its own. */
  dedicated: Type.Boolean(),
  regions: Type.Array(Type.Object({ region: Type.Integer(), bytes: Type.Integer(), appliance: Type.String(), lost: Type.Boolean() })),
  appliances: Type.Array(Type.String()),
  /** Part of it is gone with an appliance. */
  lost: Type.Boolean(),
  attr: Attr,
});
export type AllocationInfo = Static<typeof AllocationInfo>;

const AllocationPage = Type.Object({ allocations: Type.Array(AllocationInfo), next: Type.Optional(Type.Integer()) });
const Anything = Type.Unknown();

export class Allocations {
  constructor(private readonly address: ManagerAddress) {}

  /** The directory must exist. All of its memory is reserved, or none, if it is `dedicated` (large ones are by themselves). */
  create(
    path: string,
    options: { bytes: number; layout?: string; across?: string; dedicated?: boolean; access?: string; accessKey?: string },
  ): Promise<AllocationInfo> {
    return this.ask('POST', '/v1/allocations', AllocationInfo, { path, ...options });
  }

  resize(path: string, bytes: number): Promise<AllocationInfo> {
    return this.ask('PATCH', routeOf(path), AllocationInfo, { bytes });
  }

  async remove(path: string): Promise<void> {
    await this.ask('DELETE', routeOf(path), Anything);
  }

  info(path: string): Promise<AllocationInfo> {
    return this.ask('GET', routeOf(path), AllocationInfo);
  }

  /** What is in a directory; page by page, so that large ones need no more memory than small ones. */
  async *list(path = '/'): AsyncGenerator<AllocationInfo> {
    for (let after: number | undefined = 0; after !== undefined;) {
      const query = new URLSearchParams({ path, after: String(after), limit: String(LIST_PAGE) });
      const page: Static<typeof AllocationPage> = await this.ask('GET', `/v1/allocations?${query.toString()}`, AllocationPage);
      yield* page.allocations;
      after = page.next;
    }
  }

  /** Rejects unless a manager answers there and accepts the token. */
  async check(): Promise<void> {
    await this.ask('GET', '/v1/space', Anything);
  }

  private async ask<Schema extends TSchema>(method: string, route: string, schema: Schema, body?: unknown): Promise<Static<Schema>> {
    const answer = await askManager(this.address, method, route, body);
    if (!Value.Check(schema, answer))
      throw new ExtmemError(
        'EPROTO',
        `${this.address.manager} answered ${method} ${route} in an unknown form: it may be of another version`,
      );
    return answer;
  }
}

function routeOf(path: string): string {
  const names = path.split('/').filter((name) => name !== '');
  if (names.length === 0) throw new ExtmemError('EINVAL', 'an allocation has a path, as in /data/table');
  return `/v1/allocations/${names.map(encodeURIComponent).join('/')}`;
}
