/**
 * Access parameters (A12), at real mounts of a real appliance: a table of rights × what is done × transport, each cell tried; and
 * rights that are taken away, or whose time is over, while a file is in use. What a client may do that is not a mount of ours:
 * test/contract/access_contract_test.cc.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { askManager } from '../../src/base/manager_http.js';
import { Actor } from './actor.js';
import { quote } from './bad_days.js';
import { TestCluster } from './cluster.js';
import { until } from '../until.js';

const MIB = 1 << 20;
const PAGE = 4096;
const ADMIN = 'all clients=admin';

const cluster = new TestCluster({ appliances: 1, memory: '1280M', cache: '16M' });
let actor: Actor;

const path = (mount: string, name: string): string => quote(cluster.mount(mount).path(name));

/** As the administrator whom all rules here let in. */
async function admin(...words: string[]): Promise<string> {
  const { code, stdout, stderr } = await cluster.extmem(...words, '--name', 'admin');
  expect({ words, code, stderr: stderr.replace(/^extmem: warning:.*\n/gm, '') }).toEqual({ words, code: 0, stderr: '' });
  return stdout;
}

const create = (name: string, rules: string, ...more: string[]): Promise<string> =>
  admin('create', `/${name}`, '--size', '1M', '--allow', `${ADMIN}; ${rules}`, ...more);

const change = (name: string, rules: string): Promise<string> => admin('access', `/${name}`, '--allow', `${ADMIN}; ${rules}`);

/** The errno's name, or ''. */
async function outcome(code: string): Promise<string> {
  const error = await actor.fails(code);
  return error.startsWith('no failure') ? '' : error;
}

beforeAll(async () => {
  await cluster.start(0);
  await cluster.startMount('shm', '--transport', 'shm');
  await cluster.startMount('tcp', '--transport', 'tcp');
  actor = new Actor();
});
afterAll(async () => {
  await actor.end();
  await cluster.stop();
});

const DEEDS: Record<string, (file: string) => string> = {
  read: (file) => `fd = os.open(${file}, os.O_RDONLY); os.pread(fd, ${PAGE}, 0); os.close(fd)`,
  write: (file) => `fd = os.open(${file}, os.O_WRONLY); os.pwrite(fd, b'x' * ${PAGE}, 0); os.fsync(fd); os.close(fd)`,
  'read-metadata': (file) => `os.stat(${file})`,
  'write-metadata': (file) => `os.chmod(${file}, 0o600)`,
  destroy: (file) => `os.unlink(${file})`,
};

const GRANTS = [
  [],
  ['read-metadata'],
  ['read-metadata', 'read'],
  ['read-metadata', 'write'],
  ['read-metadata', 'write-metadata'],
  ['read-metadata', 'destroy'],
  Object.keys(DEEDS),
];

describe.each(['shm', 'tcp'])('over %s', (mount) => {
  test.each(GRANTS.map((grant) => [grant.join('+') || 'nothing', grant] as const))(
    'with %s, that and no more can be done',
    async (_, grant) => {
      const name = `${mount}-${grant.join('-')}`;
      await create(name, grant.length === 0 ? '' : `${grant.join('+')} clients=${mount}`);
      const found = Object.fromEntries(Object.keys(DEEDS).map((deed) => [deed, '']));
      for (const [deed, code] of Object.entries(DEEDS)) found[deed] = await outcome(code(path(mount, name)));
      const expected = Object.fromEntries(Object.keys(DEEDS).map((deed) => [deed, grant.includes(deed) ? '' : 'EACCES']));
      expect(found).toEqual(expected);
      expect((await actor.do<string[]>(`os.listdir(${quote(cluster.mount(mount).mountPoint)})`)).includes(name)).toBe(
        grant.includes('read-metadata') && !grant.includes('destroy'),
      );
    },
  );

  test('whoever may come by the other way only is refused its data', async () => {
    const other = mount === 'shm' ? 'tcp' : 'shm';
    await create(`via-${mount}`, `all via=${other}`);
    const read = DEEDS['read']?.(path(mount, `via-${mount}`)) ?? '';
    expect(await outcome(read)).toBe('EACCES');
    expect(await outcome(DEEDS['read']?.(path(other, `via-${mount}`)) ?? '')).toBe('');
    await change(`via-${mount}`, `all via=${mount}`);
    expect(await outcome(read)).toBe('');
  });

  test('a right that is taken away is gone for what is open too, and others go on', async () => {
    const keeper = mount === 'shm' ? 'tcp' : 'shm';
    const name = `taken-${mount}`;
    const [file, kept] = [path(mount, name), path(keeper, name)];
    await create(name, 'all');
    await actor.do(`fd = os.open(${file}, os.O_RDWR); os.pwrite(fd, b'a' * ${MIB}, 0); os.fsync(fd); os.pwrite(fd, b'b' * ${PAGE}, 0)`);
    await change(name, `all clients=${keeper}; read+read-metadata clients=${mount}`);
    // What it had written while it might is there, and read still is.
    expect(await actor.do(`os.pread(fd, 2, ${PAGE - 1})`)).toBe('ba');
    expect(await outcome(`os.pwrite(fd, b'c' * ${PAGE}, 0); os.fsync(fd)`)).toBe('EACCES');
    expect(await outcome(`os.open(${file}, os.O_RDWR)`)).toBe('EACCES');
    await change(name, `all clients=${keeper}`);
    expect(await outcome(`os.pread(fd, 1, ${MIB - PAGE})`)).toBe('EACCES');
    expect(await outcome(`os.open(${file}, os.O_RDONLY)`)).toBe('EACCES');
    expect(await outcome(`os.close(fd)`)).toBe('EACCES');
    expect(await actor.do(`get(${kept})[${PAGE - 1}:${PAGE + 1}]`)).toBe('ba');
    expect(await outcome(`put(${kept}, b'd' * ${MIB})`)).toBe('');
    await change(name, 'all');
    expect(await actor.do(`get(${file})[:1]`)).toBe('d');
  });

  test('when its time is over it is gone, and back when it begins again', async () => {
    const name = `timed-${mount}`;
    const file = path(mount, name);
    const at = (ms: number): string => new Date(ms).toISOString();
    const end = Date.now() + 6000; // it is made, and opened, before that, also on a busy machine
    const again = end + 3000;
    await create(name, `all until=${at(end)}; all from=${at(again)}`);
    await actor.do(`fd = os.open(${file}, os.O_RDWR); os.pwrite(fd, b'a' * ${MIB}, 0); os.fsync(fd)`);
    await until('its time is over', () => Date.now() > end);
    await until('what is open is refused', async () => (await outcome(`os.pread(fd, 1, 0)`)) === 'EACCES');
    expect(Date.now()).toBeLessThan(again);
    expect(await outcome(`os.open(${file}, os.O_RDONLY)`)).toBe('EACCES');
    expect(await outcome(`os.close(fd)`)).toBe('EACCES');
    await until('it may be opened again', async () => (await outcome(`os.close(os.open(${file}, os.O_RDWR))`)) === '');
    expect(Date.now()).toBeGreaterThanOrEqual(again);
  });

  test('a key opens what asks for one, and nothing of it is kept in clear', async () => {
    const name = `keyed-${mount}`;
    const keyFile = join(cluster.folder, `${name}.key`);
    writeFileSync(keyFile, `a secret of ${name}\n`, { mode: 0o600 });
    await create(name, 'all key', '--access-key-file', keyFile);
    const read = DEEDS['read'] ?? ((file: string): string => file);
    expect(await outcome(read(path(mount, name)))).toBe('EACCES');
    const holder = await cluster.startMount(`${mount}-holder`, '--transport', mount, '--key-file', keyFile);
    expect(await outcome(read(quote(holder.path(name))))).toBe('');
    await cluster.signal(holder.name, 'SIGTERM');
    expect((await cluster.extmem('info', `/${name}`)).code).toBe(4);
    expect((await cluster.extmem('info', `/${name}`, '--key-file', keyFile)).code).toBe(0);
    expect(cluster.role('manager').log()).not.toContain('a secret of');
    const kept = await actor.do(
      `import glob; any(b'a secret of' in open(file, 'rb').read() for file in glob.glob(${quote(join(cluster.folder, 'manager', '**'))}, recursive=True) if os.path.isfile(file))`,
    );
    expect(kept).toBe(false);
  });
});

test('a protected file grows, is cut and filled again, in regions of its own; no other file is there', async () => {
  await admin('create', '/grows', '--size', '0', '--allow', `${ADMIN}; all clients=tcp,shm`);
  const [one, other] = [path('tcp', 'grows'), path('shm', 'grows')];
  await actor.do(`data = random.randbytes(${3 * MIB}); put(${one}, data)`);
  await actor.do(`put(${path('tcp', 'beside')}, data[:${MIB}])`);
  expect(await actor.do(`get(${other}) == data`)).toBe(true);
  await actor.do(`f = open(${one}, 'r+b'); fallocate(f.fileno(), 3, ${MIB}, ${MIB}); f.seek(${MIB}); f.write(data[:${PAGE}]); f.close()`);
  const expected = `data[:${MIB}] + data[:${PAGE}] + bytes(${MIB - PAGE}) + data[${2 * MIB}:]`;
  expect(await actor.do(`get(${other}) == ${expected}`)).toBe(true);
  // Shared by two writers it grows too.
  await actor.do(
    `a = open(${one}, 'ab', buffering=0); b = open(${other}, 'ab', buffering=0); a.write(b'a' * 9000); b.write(b'b' * 9000); a.close(); b.close()`,
  );
  expect(await actor.do(`get(${other})[${3 * MIB}:] == b'a' * 9000 + b'b' * 9000`)).toBe(true);
  const info = JSON.parse(await admin('info', '/grows', '--json')) as { dedicated: boolean; regions: { region: number }[] };
  const beside = JSON.parse(await admin('info', '/beside', '--json')) as { regions: { region: number }[] };
  const others = beside.regions.map(({ region }) => region);
  expect(info.dedicated).toBe(true);
  expect(info.regions.filter(({ region }) => others.includes(region))).toEqual([]);
});

test('a file that lies beside others is not protected afterwards: what to do instead is said', async () => {
  await actor.do(`put(${path('tcp', 'late')}, bytes(${PAGE}))`);
  const { code, stderr } = await cluster.extmem('access', '/late', '--allow', 'all clients=tcp', '--name', 'tcp');
  expect(code).toBe(1);
  expect(stderr).toContain('extmem create --allow');
  expect(await outcome(`os.setxattr(${path('tcp', 'late')}, 'user.extmem.access', b'all clients=tcp')`)).toBe('ENOTSUP');
  await actor.do(`put(${path('tcp', 'early')}, b'')`);
  await actor.do(`os.setxattr(${path('tcp', 'early')}, 'user.extmem.access', b'all clients=tcp')`);
  expect(await actor.do(`os.getxattr(${path('tcp', 'early')}, 'user.extmem.access')`)).toBe('all clients=tcp');
  expect(await outcome(`get(${path('shm', 'early')})`)).toBe('EACCES');
});

test('over HTTP the same holds', async () => {
  await create('asked', 'read-metadata clients=reader');
  const as = (name: string, method: string, route: string, body?: unknown): Promise<unknown> =>
    askManager({ manager: cluster.manager, token: cluster.token, name }, method, route, body);
  const refused = { code: 'EACCES' };
  await expect(as('stranger', 'GET', '/v1/allocations/asked')).rejects.toMatchObject(refused);
  await expect(as('reader', 'GET', '/v1/allocations/asked')).resolves.toMatchObject({ path: '/asked' });
  await expect(as('reader', 'PATCH', '/v1/allocations/asked', { bytes: 1 })).rejects.toMatchObject(refused);
  await expect(as('reader', 'PUT', '/v1/access/asked', { rules: 'all' })).rejects.toMatchObject(refused);
  await expect(as('reader', 'DELETE', '/v1/allocations/asked')).rejects.toMatchObject(refused);
  await expect(as('stranger', 'GET', '/v1/allocations')).resolves.toMatchObject({
    allocations: expect.not.arrayContaining([expect.objectContaining({ path: '/asked' })]) as unknown,
  });
  await as('admin', 'DELETE', '/v1/allocations/asked');
});
