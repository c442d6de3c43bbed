import { beforeEach, expect, test } from '@jest/globals';
import { constants } from 'node:os';
import { SessionFailure } from '../../../src/base/session.js';
import { attrOfFile, emptyRecord, grantOf } from './scripted_manager.js';
import { settle, startClient, type TestClient } from './mounted.js';

const { EIO, ENOTCONN, ENOSPC } = constants.errno;

let t: TestClient;

beforeEach(async () => {
  t = await startClient();
  t.manager.script.acquire = ({ ino, mode }) => grantOf(ino, mode);
  t.manager.script.release = () => ({});
  t.manager.script.commit = () => ({ failed: [] });
});

const commit = (id: number, node: number, owner = ''): void =>
  t.client.answerUpcall({ kind: 'commit', id, node, record: Buffer.from(t.native.record(node, false)), owner });

test('records of one turn go in one request, and each file is answered for itself', async () => {
  for (const ino of [5, 6, 7]) await t.client.held.open(ino, 'write');
  t.manager.script.commit = () => ({ failed: [{ ino: 6, code: 'ENOSPC' }] });
  t.manager.takeAsked();
  for (const [id, ino] of [5, 6, 7].entries()) commit(id, ino);
  expect((await t.native.told('answers', 0)).errno).toBe(0);
  expect((await t.native.told('answers', 1)).errno).toBe(ENOSPC);
  expect((await t.native.told('answers', 2)).errno).toBe(0);
  expect(t.manager.takeAsked()).toEqual(['commit']);
});

test('a record that a truncation has overtaken is followed by the one of now, while nobody truncates', async () => {
  await t.client.held.open(5, 'write');
  t.native.write(5, 4096);
  const committed: Uint8Array[] = [];
  t.manager.script.commit = ({ records }) => {
    committed.push(...records);
    if (committed.length > 1) return { failed: [] };
    t.native.write(5, 8192); // stands for the truncation
    return { failed: [{ ino: 5, code: 'ESTALE' }] };
  };
  commit(1, 5);
  expect((await t.native.told('answers', 1)).errno).toBe(0);
  expect(committed).toHaveLength(2);
  expect(committed[1]).toEqual(t.native.record(5, false));
  await settle();
  expect(t.native.log.slice(-2)).toEqual(['beginCut 5 0 0', 'endCut 5 failed']);
});

test('with the manager dead native is told so, and the record follows when it is back', async () => {
  await t.client.held.open(5, 'write');
  t.native.write(5, 4096);
  t.manager.alive = false;
  await t.manager.events?.lost();
  commit(1, 5);
  expect((await t.native.told('answers', 1)).errno).toBe(ENOTCONN);
  t.manager.alive = true;
  t.manager.asked.length = 0;
  await t.manager.events?.resumed(t.manager.hello);
  expect(t.manager.asked).toEqual([{ name: 'commit', ask: { records: [t.native.record(5, false)] } }]);
});

test('while the manager is dead, what is to be persisted is not promised', async () => {
  const file = await t.client.held.open(5, 'write');
  t.client.held.noteAttr({ ...file.attr, persisted: true });
  t.native.write(5, 4096);
  t.manager.alive = false;
  commit(1, 5);
  expect((await t.native.told('answers', 1)).errno).toBe(EIO);
});

test('a commit that was under way when the session ended counts as one without a manager', async () => {
  await t.client.held.open(5, 'write');
  t.native.write(5, 4096);
  t.manager.script.commit = () => Promise.reject(new SessionFailure('closed', 'EIO', 'nothing was heard for 3000 ms'));
  commit(1, 5);
  expect((await t.native.told('answers', 1)).errno).toBe(ENOTCONN);
});

test('what nobody changed while the manager was away is not committed again', async () => {
  await t.client.held.open(5, 'write');
  t.manager.takeAsked();
  await t.manager.events?.resumed(t.manager.hello);
  expect(t.manager.takeAsked()).toEqual([]);
});

test('after a truncate whose answer was lost the manager decides what the file is', async () => {
  await t.client.held.open(5, 'write');
  t.native.write(5, 8192);
  t.manager.script.setattr = () => {
    t.manager.alive = false;
    throw new Error('gone');
  };
  await expect(t.client.cuts.resize(5, { size: 0 })).rejects.toThrow();
  expect(t.native.log).toContain('endCut 5 failed');
  commit(1, 5); // what may be gone when the manager is back is not promised
  expect((await t.native.told('answers', 1)).errno).toBe(EIO);
  t.manager.alive = true;
  t.manager.takeAsked();
  t.manager.script.acquire = ({ ino, mode }) => grantOf(ino, mode, { change: 50, size: 0 });
  await t.manager.events?.resumed(t.manager.hello);
  expect(t.manager.takeAsked()).toEqual(['acquire']);
  expect(t.native.fileState(5)).toMatchObject({ size: 0, change: 50, recordChanged: false });
});

test('a truncate that is not even asked leaves the file as it is', async () => {
  await t.client.held.open(5, 'write');
  t.native.write(5, 8192);
  t.manager.alive = false;
  await expect(t.client.cuts.resize(5, { size: 0 })).rejects.toMatchObject({ code: 'EIO' });
  expect(t.native.log).not.toContain('beginCut 5 0 -1');
  t.manager.alive = true;
  t.manager.takeAsked();
  await t.manager.events?.resumed(t.manager.hello);
  expect(t.manager.takeAsked()).toEqual(['commit']);
  expect(t.native.fileState(5)?.size).toBe(8192);
});

test('growth asks for room, and without manager there is none', async () => {
  t.client.answerUpcall({ kind: 'provision', id: 1, bytes: 4096 });
  expect((await t.native.told('answers', 1)).errno).toBe(0);
  expect(t.manager.takeAsked()).toEqual(['provision']);
  t.manager.alive = false;
  t.client.answerUpcall({ kind: 'provision', id: 2, bytes: 4096 });
  expect((await t.native.told('answers', 2)).errno).toBe(ENOSPC);
});

test('needs that come up while room is being asked for go into one more request', async () => {
  for (const id of [1, 2, 3]) t.client.answerUpcall({ kind: 'provision', id, bytes: 4096 });
  await Promise.all([1, 2, 3].map((id) => t.native.told('answers', id)));
  expect(t.manager.takeAsked()).toEqual(['provision', 'provision']);
});

test('a truncate under the write delegation takes our record along and native takes the answer', async () => {
  await t.client.held.open(5, 'write');
  t.native.write(5, 8192);
  t.manager.asked.length = 0;
  t.manager.script.setattr = ({ ino }) => ({ attr: attrOfFile(ino, { size: 100 }), record: emptyRecord(ino, { size: 100, change: 20 }) });
  await t.client.cuts.resize(5, { size: 100 });
  expect(t.manager.asked).toEqual([{ name: 'setattr', ask: { ino: 5, set: { size: 100 }, record: expect.any(Uint8Array) } }]);
  expect(t.native.log.slice(-2)).toEqual(['beginCut 5 100 -1', 'endCut 5 done']);
  expect(t.native.fileState(5)?.size).toBe(100);
});

test('a manager of another cluster is passed on: the mount must end', () => {
  t.manager.events?.fenced('it is another cluster');
  expect(t.fenced).toEqual(['it is another cluster']);
});

test('what waits to be committed when we are fenced is not committed in the name of who we are then', async () => {
  await t.client.held.open(5, 'write');
  t.native.write(5, 4096);
  t.manager.takeAsked();
  commit(1, 5); // goes out in the next turn
  await t.manager.events?.rejoined({ ...t.manager.hello, client: 8 });
  expect((await t.native.told('answers', 1)).errno).toBe(EIO);
  expect(t.native.log).toContain('rejoin 8');
  expect(t.manager.takeAsked()).not.toContain('commit');
  expect(t.client.held.get(5)).toMatchObject({ isVoid: true, writers: 1 });
});
