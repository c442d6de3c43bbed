/** Evict, warm and pin as the mount serves them, with a manager and without memory. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { readBackingDevice } from '../../../src/fs/backing_device.js';
import { Residency } from '../../../src/fs/residency.js';
import { Cluster, type TestMount } from './cluster.js';
import { text } from './kernel.js';

const MIB = 1024 * 1024;
const LIMITS = { cacheBytes: 16 * MIB, dirtyBytes: 4 * MIB, pinLimitBytes: 8 * MIB };

describe('files in local memory', () => {
  let cluster: Cluster;
  let mount: TestMount;
  let files: Residency;

  beforeEach(async () => {
    cluster = await Cluster.start();
    mount = await cluster.mount('a');
    files = new Residency(mount.client, LIMITS);
  });
  afterEach(() => cluster.stop());

  async function make(name: string, bytes: number): Promise<number> {
    const { node, handle } = await mount.kernel.create(1, name);
    mount.native.write(node, bytes);
    await mount.kernel.release(node, handle);
    return node;
  }

  test('warming goes on in steps; who asks may wait for its end', async () => {
    const ino = await make('file', 20 * MIB);
    let go: () => void = () => undefined;
    mount.native.onWarm = () => new Promise((resolve) => (go = resolve));
    const begun = await files.warm(ino, { offset: MIB, length: 10 * MIB });
    expect(begun.warming).toMatchObject({ state: 'running', doneBytes: 0, totalBytes: 10 * MIB });
    expect(files.statistics().warming).toBe(1);
    go();
    mount.native.onWarm = () => Promise.resolve();
    expect((await files.tell(ino, 10_000)).warming).toMatchObject({ state: 'done', doneBytes: 10 * MIB });
    expect(mount.native.log.filter((line) => line.startsWith('warm'))).toEqual([
      `warm ${ino} ${MIB} ${8 * MIB}`,
      `warm ${ino} ${9 * MIB} ${2 * MIB}`,
    ]);
    expect(files.statistics().warming).toBe(0);
  });

  test('a warming that fails says why', async () => {
    const ino = await make('file', MIB);
    mount.native.onWarm = () => Promise.reject(new Error('no appliance'));
    await files.warm(ino, { offset: 0 });
    expect((await files.tell(ino, 10_000)).warming).toMatchObject({ state: 'failed', error: { code: 'EIO' } });
  });

  test('pins reserve room: what does not fit beside them is refused, and what is unpinned is free again', async () => {
    const [large, small] = [await make('large', 6 * MIB), await make('small', 3 * MIB)];
    await files.pin(large, '/large');
    await expect(files.pin(small, '/small')).rejects.toMatchObject({ code: 'ENOMEM' });
    expect(mount.native.pinned).toEqual(new Set([large]));
    expect(files.unpin(large)).toBe(true);
    expect(files.unpin(large)).toBe(false);
    await files.pin(small, '/small');
    expect(files.statistics()).toMatchObject({ reservedBytes: 3 * MIB, pinned: [{ path: '/small', ino: small }] });
  });

  test('pinned twice is pinned once', async () => {
    const ino = await make('file', 6 * MIB);
    await files.pin(ino, '/file');
    await files.pin(ino, '/file');
    expect(files.statistics().reservedBytes).toBe(6 * MIB);
    files.unpin(ino);
    expect(mount.native.pinned.size).toBe(0);
  });

  test('a pin ends with the last name of the file', async () => {
    const ino = await make('file', MIB);
    await files.pin(ino, '/file');
    await files.tell(ino, 10_000);
    await mount.kernel.ask('UNLINK', 1, text('file'));
    expect(files.statistics()).toMatchObject({ reservedBytes: 0, pinned: [] });
    expect(mount.native.pinned.size).toBe(0);
  });

  test('evicting leaves what is pinned', async () => {
    const [pinned, other] = [await make('pinned', MIB), await make('other', MIB)];
    await files.pin(pinned, '/pinned');
    mount.native.log.length = 0;
    await files.evictAll();
    expect(mount.native.log).toContain(`invalidateInode ${pinned} 0 -1`);
    expect(mount.native.log.filter((line) => line.startsWith('dropPages'))).toEqual([`dropPages ${other} 0 -1`]);
  });
});

test('the backing device of a mount is found by its place', () => {
  expect(readBackingDevice('/')?.device).toMatch(/^\d+:\d+$/);
  expect(readBackingDevice('/nothing is mounted here')).toBeUndefined();
});
