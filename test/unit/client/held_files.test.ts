import { beforeEach, describe, expect, test } from '@jest/globals';
import { decodeRecord, encodeRecord } from '../../../src/base/file_record.js';
import type { Lock, RegionGrant } from '../../../src/base/messages.js';
import { CapabilityBytes, encodeCapability, Right } from '../../../src/base/protocol.js';
import { isOpen } from '../../../src/client/held_files.js';
import { SessionFailure } from '../../../src/base/session.js';
import { attrOfFile, emptyRecord, grantOf } from './scripted_manager.js';
import { settle, startClient, type TestClient } from './mounted.js';

let t: TestClient;

function regionGrant(region: number, rights: number): RegionGrant {
  const capability = Buffer.alloc(CapabilityBytes);
  encodeCapability(new DataView(capability.buffer, capability.byteOffset), 0, {
    client: 1n,
    clientGeneration: 1,
    rights,
    region: BigInt(region),
    notAfter: 0n,
    via: 0,
    version: 0,
    mac: new Uint8Array(32),
  });
  return { region, bytes: 64 * 1024 * 1024, appliance: 'a', incarnation: 1, capability };
}

beforeEach(async () => {
  t = await startClient({ maxIdleFiles: 2 });
  t.manager.script.acquire = ({ ino, mode }) => grantOf(ino, mode);
  t.manager.script.release = () => ({});
});

describe('opening', () => {
  test('a held delegation that suffices is used at once, with no word to the manager', async () => {
    await t.client.held.open(5, 'write');
    t.client.held.close(5, 'write');
    t.manager.takeAsked();
    const again = t.client.held.open(5, 'read');
    expect(again).not.toBeInstanceOf(Promise);
    expect(t.manager.takeAsked()).toEqual([]);
  });

  test('a read delegation is asked to become a write one', async () => {
    await t.client.held.open(5, 'read');
    const file = await t.client.held.open(5, 'write');
    expect(file.mode).toBe('write');
    expect(t.manager.takeAsked()).toEqual(['acquire', 'acquire']);
  });

  test('two opens at once ask once', async () => {
    await Promise.all([t.client.held.open(5, 'write'), t.client.held.open(5, 'write'), t.client.held.open(5, 'read')]);
    expect(t.manager.takeAsked()).toEqual(['acquire']);
    expect(t.client.held.get(5)).toMatchObject({ writers: 2, readers: 1 });
  });

  test('a refused acquire leaves nothing behind', async () => {
    t.manager.alive = false;
    await expect(t.client.held.open(5, 'read')).rejects.toMatchObject({ code: 'EIO' });
    expect(t.client.held.get(5)).toBeUndefined();
    expect(t.native.files.size).toBe(0);
  });

  test('the kernel keeps its pages only when the file is as this client closed it', async () => {
    const { held } = t.client;
    const first = await held.open(5, 'write');
    expect(held.takeKeepCache(first)).toBe(false);
    t.native.write(5, 100); // change counter 2
    held.close(5, 'write');
    expect(held.takeKeepCache(await held.open(5, 'read'))).toBe(true);
    held.close(5, 'read');
    // Given back, and acquired again: as we left it, then as somebody else left it.
    await t.manager.pushes?.recall({ ino: 5, to: 'shared' });
    held.forget(await held.open(5, 'read'));
    t.manager.script.acquire = ({ ino, mode }) => grantOf(ino, mode, { change: 2, size: 100 });
    expect(held.takeKeepCache(await held.open(5, 'read'))).toBe(false); // the recall dropped the kernel's pages
    held.close(5, 'read');
    held.forget(await held.open(5, 'read'));
    expect(held.takeKeepCache(await held.open(5, 'read'))).toBe(true);
    held.close(5, 'read');
    held.forget(await held.open(5, 'read'));
    t.manager.script.acquire = ({ ino, mode }) => grantOf(ino, mode, { change: 3, size: 100 });
    expect(held.takeKeepCache(await held.open(5, 'read'))).toBe(false);
  });
});

describe('giving back', () => {
  test('the longest idle file goes when there are too many, written back and with its record', async () => {
    for (const ino of [5, 6, 7]) {
      await t.client.held.open(ino, 'write');
      t.native.write(ino, 4096);
      t.client.held.close(ino, 'write');
    }
    await settle();
    expect(t.client.held.get(5)).toBeUndefined();
    expect(t.client.held.get(6)).toBeDefined();
    expect(t.native.log).toEqual(expect.arrayContaining(['flush 5', 'drop 5']));
    expect(t.manager.asked.find(({ name }) => name === 'release')?.ask).toMatchObject({ ino: 5, record: expect.any(Uint8Array) });
  });

  test('when the answer is lost, nobody opens it before it was given back again', async () => {
    const { held } = t.client;
    const lost = (): Promise<never> => Promise.reject(new SessionFailure('closed', 'EIO', 'the session is lost'));
    t.manager.script.release = lost;
    for (const ino of [5, 6, 7]) {
      await held.open(ino, 'write');
      t.native.write(ino, 4096);
      held.close(ino, 'write');
    }
    await settle();
    const first = held.get(5);
    t.manager.takeAsked();
    await expect(held.open(5, 'write')).rejects.toMatchObject({ code: 'EIO' });
    expect(t.manager.takeAsked()).toEqual(['release']);
    t.manager.script.release = () => ({});
    const again = await held.open(5, 'write');
    expect(again).not.toBe(first);
    expect(t.manager.takeAsked()).toEqual(['release', 'acquire']);
  });

  test('what could not be given back while the session was lost is, on the next one', async () => {
    const { held } = t.client;
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    await held.open(5, 'write');
    t.manager.alive = false;
    held.close(5, 'write');
    await settle();
    expect(held.get(5)).toBeDefined();
    await t.manager.events?.resumed(t.manager.hello);
    t.manager.alive = true; // not before that is done
    await settle();
    expect(held.get(5)).toBeUndefined();
  });

  test('what cannot be written back stays held', async () => {
    t.native.onFlush = () => Promise.reject(new Error('appliance dead'));
    for (const ino of [5, 6, 7]) {
      await t.client.held.open(ino, 'write');
      t.native.write(ino, 4096);
      t.client.held.close(ino, 'write');
    }
    await settle();
    expect(t.client.held.get(5)).toBeDefined();
    expect(t.manager.takeAsked()).not.toContain('release');
  });

  test('a shared file is given back with its last close', async () => {
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    await t.client.held.open(5, 'write');
    t.client.held.close(5, 'write');
    await settle();
    expect(t.manager.takeAsked()).toEqual(['acquire', 'release']);
    expect(t.native.files.has(5)).toBe(false);
  });

  test('an unlinked file is given back when it is closed, unwritten', async () => {
    await t.client.held.open(5, 'write');
    t.native.write(5, 4096);
    t.client.held.noteAttr(attrOfFile(5, { nlink: 0 }));
    expect(t.client.held.get(5)).toBeDefined();
    t.client.held.close(5, 'write');
    await settle();
    expect(t.native.log).not.toContain('flush 5');
    expect(t.client.held.get(5)).toBeUndefined();
  });

  test('an open that comes while the file is given back waits, and acquires it again', async () => {
    let answer: (value: Record<string, never>) => void = () => undefined;
    t.manager.script.release = () => new Promise((resolve) => (answer = resolve));
    await t.client.held.open(5, 'read');
    t.client.held.noteAttr(attrOfFile(5, { nlink: 0 }));
    t.client.held.close(5, 'read');
    await settle();
    const opening = t.client.held.open(5, 'read');
    answer({});
    const file = await opening;
    expect(isOpen(file)).toBe(true);
    expect(t.manager.takeAsked()).toEqual(['acquire', 'release', 'acquire']);
  });
});

describe('recall', () => {
  test('dirty data is written back after the mode changed, caches are dropped, the manager has the record before the answer', async () => {
    await t.client.held.open(5, 'write');
    t.native.write(5, 4096);
    t.native.log.length = 0;
    const answer = await t.manager.pushes?.recall({ ino: 5, to: 'shared' });
    expect(answer).toEqual({ open: 'write', locks: [] });
    const { delegation } = grantOf(5, 'write');
    const record = expect.any(Uint8Array) as unknown;
    expect(t.manager.asked.at(-1)).toEqual({ name: 'gaveUp', ask: { ino: 5, delegation, open: 'write', record } });
    expect(t.native.log).toEqual([
      'invalidateInode 5 0 -1',
      'put 5 shared',
      'invalidateInode 5 0 -1',
      'flush 5',
      'dropPages 5 0 -1',
      'yieldEnd 5',
      'pauseWriters 5',
      'resumeWriters 5',
    ]);
    expect(t.native.fileState(5)?.recordChanged).toBe(false);
  });

  test('what the manager did not hear of goes again: before anything else on a new session, and when it recalls the file again', async () => {
    await t.client.held.open(5, 'write');
    t.native.write(5, 4096);
    const record = Buffer.from(t.native.record(5, false));
    t.manager.script.gaveUp = () => Promise.reject(new SessionFailure('closed', 'EIO', 'the session is lost'));
    await expect(t.manager.pushes?.recall({ ino: 5, to: 'shared' })).rejects.toMatchObject({ code: 'EIO' });
    const again = { name: 'gaveUp', ask: { ino: 5, delegation: 1, open: 'write', record } };
    t.manager.asked.length = 0;
    await t.manager.events?.resumed(t.manager.hello);
    expect(t.manager.asked[0]).toEqual(again);
    t.manager.script.gaveUp = () => ({});
    t.manager.asked.length = 0;
    expect(await t.manager.pushes?.recall({ ino: 5, to: 'shared' })).toMatchObject({ open: 'write' });
    expect(t.manager.asked).toEqual([again]);
    t.manager.asked.length = 0;
    await t.manager.pushes?.recall({ ino: 5, to: 'shared' });
    expect(t.manager.asked).toEqual([]);
  });

  test('what the manager tells while it is being written back does not replace what is newer', async () => {
    await t.client.held.open(5, 'write');
    t.native.write(5, 4096);
    t.native.onFlush = async () => {
      await t.manager.pushes?.invalidate({ ino: 5, offset: 0, length: 0, attr: attrOfFile(5), record: emptyRecord(5) });
    };
    await t.manager.pushes?.recall({ ino: 5, to: 'shared' });
    const told = t.manager.asked.find(({ name }) => name === 'gaveUp')?.ask as { record: Uint8Array };
    expect(decodeRecord(told.record).size).toBe(4096);
  });

  test('a file that is not open is given up whole', async () => {
    await t.client.held.open(5, 'write');
    t.client.held.close(5, 'write');
    expect(await t.manager.pushes?.recall({ ino: 5, to: 'shared' })).toMatchObject({ open: 'none' });
    expect(t.native.files.has(5)).toBe(false);
    expect(await t.manager.pushes?.recall({ ino: 5, to: 'shared' })).toEqual({ open: 'none' });
  });

  test('a failed write-back is not hidden, and the locks stay with the file', async () => {
    await t.client.held.open(5, 'write');
    const lock: Lock = { ino: 5, owner: 'a', flock: false, type: 'write', start: 0, end: 9, pid: 1 };
    void t.client.locks.setlk(lock, false, 1);
    t.native.onFlush = () => Promise.reject(new Error('appliance dead'));
    await expect(t.manager.pushes?.recall({ ino: 5, to: 'shared' })).rejects.toMatchObject({ code: 'EIO' });
    t.native.onFlush = () => Promise.resolve();
    expect(await t.manager.pushes?.recall({ ino: 5, to: 'shared' })).toMatchObject({ locks: [lock] });
  });

  test('a writer keeps nothing but shared, a reader may keep read', async () => {
    await t.client.held.open(5, 'write');
    await t.manager.pushes?.recall({ ino: 5, to: 'read' });
    expect(t.client.held.get(5)?.mode).toBe('shared');
    await t.client.held.open(6, 'read');
    await t.manager.pushes?.recall({ ino: 6, to: 'read' });
    expect(t.client.held.get(6)?.mode).toBe('read');
  });

  test('a kernel that does not drop its pages holds the answer up for a second at most', async () => {
    await t.client.held.open(5, 'read');
    t.native.onInvalidate = () => new Promise(() => undefined);
    const begin = performance.now();
    await t.manager.pushes?.recall({ ino: 5, to: 'shared' });
    expect(performance.now() - begin).toBeLessThan(1500);
  });

  test('a write that goes through while the recall is under way needs nobody', async () => {
    await t.client.held.open(5, 'write');
    let flushed: () => void = () => undefined;
    t.native.onFlush = () => new Promise<void>((resolve) => (flushed = resolve));
    const recalled = t.manager.pushes?.recall({ ino: 5, to: 'shared' });
    await settle();
    t.manager.takeAsked();
    t.client.answerUpcall({ kind: 'wrote', id: 1, node: 5, offset: 0, length: 10, mtimeSec: 1, mtimeNsec: 0, holdsPages: true });
    t.client.answerUpcall({ kind: 'extend', id: 2, node: 5, record: emptyRecord(5), offset: 0, length: 0 });
    expect((await t.native.told('answers', 1)).errno).toBe(0);
    expect((await t.native.told('answers', 2)).errno).toBe(0);
    expect(t.manager.takeAsked()).toEqual([]);
    flushed();
    await recalled;
  });

  test('the exclusive mode comes back by a grant, once nobody writes', async () => {
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    await t.client.held.open(5, 'write');
    t.native.log.length = 0;
    await t.manager.pushes?.grant({ grant: grantOf(5, 'write', { change: 9, size: 12 }) });
    await settle();
    expect(t.native.log).toEqual(['beginCut 5 0 0', 'dropPages 5 0 -1', 'put 5 shared', 'put 5 write', 'endCut 5 failed']);
    expect(t.client.held.get(5)).toMatchObject({ mode: 'write', kernelPagesValid: false });
  });

  test('opened for writing again after a recall that found it open for reading only: the manager is asked', async () => {
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'write');
    await t.client.held.open(5, 'read');
    await t.client.held.open(5, 'write');
    t.client.held.close(5, 'write');
    expect(await t.manager.pushes?.recall({ ino: 5, to: 'shared' })).toMatchObject({ open: 'read' });
    t.manager.takeAsked();
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    await t.client.held.open(5, 'write');
    expect(t.manager.takeAsked()).toEqual(['acquire']);
  });

  test('a grant that a write of ours has overtaken does not take that write back', async () => {
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    t.manager.script.wrote = ({ ino }) => ({ attr: attrOfFile(ino, { change: 10, size: 99 }) });
    await t.client.held.open(5, 'write');
    t.client.answerUpcall({ kind: 'wrote', id: 1, node: 5, offset: 0, length: 99, mtimeSec: 1, mtimeNsec: 0, holdsPages: true });
    expect((await t.native.told('answers', 1)).errno).toBe(0);
    expect(t.native.fileState(5)?.size).toBe(99);
    await t.manager.pushes?.grant({ grant: grantOf(5, 'write', { change: 9, size: 12 }) });
    await settle();
    expect(t.native.fileState(5)).toMatchObject({ mode: 'write', size: 99 });
  });

  test('regions that could only be read are asked for again when a file that is written here gets pieces of them', async () => {
    const known = regionGrant(1001, Right.read);
    t.manager.script.acquire = ({ ino }) => ({ ...grantOf(ino, 'shared'), regions: [known] });
    t.manager.script.regions = ({ regions }) => ({ regions: regions.map((region) => regionGrant(region, Right.read | Right.write)) });
    await t.client.held.open(5, 'write');
    t.manager.asked.length = 0;
    const extent = { fileOffset: 0, length: 4096, unit: 4096, members: [{ region: 1001, offset: 0 }] };
    const record = encodeRecord({ ...decodeRecord(emptyRecord(5, { change: 8, size: 80 })), extents: [extent] });
    await t.manager.pushes?.invalidate({ ino: 5, offset: 0, length: 80, attr: attrOfFile(5, { change: 8, size: 80 }), record });
    expect(t.manager.asked).toEqual([{ name: 'regions', ask: { regions: [1001] } }]);
  });

  test('a record that was overtaken by a newer one changes nothing', async () => {
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    await t.client.held.open(5, 'write');
    const tell = async (change: number, size: number): Promise<void> => {
      const record = emptyRecord(5, { change, size });
      await t.manager.pushes?.invalidate({ ino: 5, offset: 0, length: -1, attr: attrOfFile(5, { change, size }), record });
    };
    await tell(8, 80);
    await tell(7, 70);
    expect(t.native.fileState(5)?.size).toBe(80);
  });

  test('a recall that overtakes a slow grant leaves the file shared', async () => {
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    await t.client.held.open(5, 'write');
    let writersLeft: () => void = () => undefined;
    t.native.onBeginCut = () => new Promise<void>((resolve) => (writersLeft = resolve));
    await t.manager.pushes?.grant({ grant: grantOf(5, 'write') });
    const recalled = t.manager.pushes?.recall({ ino: 5, to: 'shared' });
    expect(await recalled).toMatchObject({ open: 'write' });
    writersLeft();
    await settle();
    expect(t.client.held.get(5)?.mode).toBe('shared');
    expect(t.native.fileState(5)?.mode).toBe('shared');
  });
});
