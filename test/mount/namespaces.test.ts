/**
 * Three hosts, as three network namespaces on a bridge: a manager, an appliance and a mount, each started with one short
 * command in its own, find each other by address; a file goes over the wire and comes back the same. Needs root.
 * Only the network differs between these hosts: the mount is visible to this process, which uses it as a user would.
 */
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { canMakeHosts, TestHosts } from './hosts.js';

const fileBytes = 48 * 1024 * 1024;

async function hashOf(path: string): Promise<string> {
  const digest = createHash('sha256');
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) digest.update(piece as Buffer);
  return digest.digest('hex');
}

// In CI the lane must have what it needs: there the test fails rather than being skipped.
const describeHosts = canMakeHosts || process.env['CI'] ? describe : describe.skip;

describeHosts('three hosts', () => {
  const hosts = new TestHosts(['manager', 'appliance', 'client']);
  const manager = hosts.address('manager');
  const mountPoint = join(hosts.folder, 'mnt');
  const token = join(hosts.folder, 'extmem/manager/token');
  const mount = (): Promise<Record<string, unknown>> => hosts.start('client', 'mount', '--manager', manager, '--mkdir', mountPoint);

  beforeAll(async () => {
    hosts.make();
    await hosts.start('manager', 'manager', '--listen', manager);
    await hosts.start('appliance', 'appliance', '--manager', manager, '--memory', '256M');
    await mount();
  }, 60_000);

  afterAll(() => hosts.stop(), 60_000);

  test('the appliance is advertised by the address that reaches the manager', async () => {
    const { output } = await hosts.extmem('client', 'status', '--json', '--manager', manager, '--token-file', token);
    const status = JSON.parse(output) as { appliances: { address: string }[] };
    expect(status.appliances.map(({ address }) => address)).toEqual([hosts.address('appliance')]);
  });

  test('a file written on one host is read back the same over the wire after a remount', async () => {
    const path = join(mountPoint, 'file');
    const content = randomBytes(fileBytes);
    const file = await open(path, 'w');
    await file.write(content);
    await file.sync();
    await file.close();
    expect((await hosts.extmem('client', 'umount', mountPoint)).code).toBe(0);
    await mount();
    expect(await hashOf(path)).toBe(createHash('sha256').update(content).digest('hex'));
    const { output } = await hosts.extmem('client', 'status', '--json', '--manager', manager);
    const { mounts } = JSON.parse(output) as { mounts: { fabric: Record<string, { transport: string; bytesRead: number }> }[] };
    const [fabric] = mounts.flatMap((mount) => Object.values(mount.fabric));
    expect(fabric?.transport).toBe('tcp');
    expect(fabric?.bytesRead).toBeGreaterThanOrEqual(fileBytes);
  }, 60_000);

  test('a manager that nobody runs is a message that says what to do', async () => {
    const { code, complaint } = await hosts.extmem(
      'client',
      'mount',
      '--manager',
      '10.77.0.9',
      '--token',
      'none',
      '--mkdir',
      join(hosts.folder, 'other'),
    );
    expect(complaint).toMatch(/no manager|EHOSTUNREACH|10\.77\.0\.9/);
    expect(code).toBe(3);
  });

  test('a wrong token is refused by name', async () => {
    const { code, complaint } = await hosts.extmem(
      'appliance',
      'appliance',
      '--manager',
      manager,
      '--id',
      'other',
      '--memory',
      '64M',
      '--token',
      'wrong',
    );
    expect(complaint).toMatch(/token/);
    expect(code).toBe(4);
  });
});
