/**
 * A manager behind TLS: everybody checks its certificate, and who cannot is told what to do (C3, B2).
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Actor } from './actor.js';
import { quote } from './bad_days.js';
import { run, cli, TestCluster, type Output } from './cluster.js';

describe('a cluster whose manager serves TLS', () => {
  const cluster = new TestCluster({ tls: true, memory: '64M', cache: '16M', appliances: 1 });
  let actor: Actor;

  beforeAll(async () => {
    await cluster.start();
    actor = new Actor();
  });
  afterAll(async () => {
    await actor.end();
    await cluster.stop();
  });

  const listWith = (manager: string, environment: NodeJS.ProcessEnv): Promise<Output> =>
    run(process.execPath, [cli, 'ls', '--manager', manager], { ...cluster.environment, ...environment });

  test('files are written and read, and the CLI asks over it', async () => {
    const path = quote(cluster.mount().path('over-tls'));
    await actor.do(`data = random.randbytes(300_000); put(${path}, data)`);
    await cluster.evict();
    expect(await actor.do(`get(${path}) == data`)).toBe(true);
    const { code, stdout } = await cluster.extmem('status', '--json');
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ appliances: [{ id: 'a1' }] });
  });

  test('a certificate that nothing vouches for: refused, naming --tls-ca', async () => {
    const { code, stderr } = await listWith(cluster.manager, { EXTMEM_TLS_CA: '' });
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/certificate/);
    expect(stderr).toMatch(/--tls-ca/);
  });

  test('asked without TLS: told to write https://', async () => {
    const { code, stderr } = await listWith(cluster.manager.replace('https://', ''), {});
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/https:\/\//);
  });

  test('a mount that cannot check the certificate does not start, and says so', async () => {
    const place = join(cluster.folder, 'm2');
    mkdirSync(place);
    const { code, stderr } = await run(process.execPath, [cli, 'mount', '--manager', cluster.manager, place], {
      ...cluster.environment,
      EXTMEM_TLS_CA: '',
    });
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/--tls-ca/);
  });
});
