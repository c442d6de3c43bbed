/** What the tests of the bad days share: timed calls, states, and files on an appliance of choice. */
import { Allocations } from '../../src/client/allocations.js';
import type { StatusAnswer } from '../../src/manager/index.js';
import type { Actor } from './actor.js';
import type { TestCluster } from './cluster.js';

/** Nothing that a user asks of a mount takes longer, whatever died (docs/semantics.md). */
export const LIMIT_MS = 5000;

export interface Timed {
  /** '' when the call succeeded, else the errno's name. */
  error: string;
  ms: number;
}

/** Python statements on the mount: how they ended, and how long they took. */
export async function timed(actor: Actor, code: string): Promise<Timed> {
  const started = Date.now();
  const error = await actor.fails(code);
  return { error: error.startsWith('no failure') ? '' : error, ms: Date.now() - started };
}

export function allocationsOf(cluster: TestCluster): Allocations {
  return new Allocations({ manager: cluster.manager, token: cluster.token });
}

/** Makes a directory whose files lie on one appliance each. */
export async function makeConcatFolder(cluster: TestCluster, actor: Actor, name: string, mount = 'm1'): Promise<string> {
  const folder = cluster.mount(mount).path(name);
  await actor.do(`os.mkdir(${quote(folder)}); os.setxattr(${quote(folder)}, 'user.extmem.layout', b'concat')`);
  return folder;
}

/**
 * A new synced file in a folder with layout concat, wholly on `appliance`, filled with `bytes` bytes of `fill` (Python). Answers its path.
 */
export async function makeFileOn(cluster: TestCluster, actor: Actor, folder: string, appliance: string, data: string): Promise<string> {
  const root = cluster.mount().mountPoint;
  for (let attempt = 0; attempt < 40; attempt += 1) {
    const path = `${folder}/on-${appliance}-${attempt}-${Math.random().toString(36).slice(2)}`;
    await actor.do(`f = os.open(${quote(path)}, os.O_RDWR | os.O_CREAT | os.O_EXCL); os.write(f, ${data}); os.fsync(f); os.close(f)`);
    const { appliances } = await allocationsOf(cluster).info(path.slice(root.length));
    if (appliances.length === 1 && appliances[0] === appliance) return path;
    await actor.do(`os.unlink(${quote(path)})`);
  }
  throw new Error(`no file came to lie on ${appliance}`);
}

export const quote = (text: string): string => JSON.stringify(text);

export async function sessionState(cluster: TestCluster, mount = 'm1'): Promise<string> {
  const statistics = (await cluster.statistics(mount)) as unknown as { client: { session: { state: string } } };
  return statistics.client.session.state;
}

/** The state of an appliance as a mount sees it: idle, connecting, up, down. */
export async function peerState(cluster: TestCluster, appliance: string, mount = 'm1'): Promise<string> {
  const statistics = (await cluster.statistics(mount)) as unknown as { fabric: Record<string, { state: string }> };
  return statistics.fabric[appliance]?.state ?? 'unknown';
}

export async function clusterStatus(cluster: TestCluster): Promise<StatusAnswer> {
  const answer = await fetch(`http://${cluster.manager}/v1/status`, { headers: { authorization: `Bearer ${cluster.token}` } });
  if (!answer.ok) throw new Error(`the manager answered ${answer.status}`);
  return (await answer.json()) as StatusAnswer;
}
