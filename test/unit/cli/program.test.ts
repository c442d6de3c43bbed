/** The commands as they are declared: help with examples everywhere, wrong usage, completion, metrics. */
import { spawnSync } from 'node:child_process';
import { get } from 'node:http';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from '@jest/globals';
import { renderBashCompletion } from '../../../src/cli/completion.js';
import { parseHttpAddress, serveOnHttp } from '../../../src/cli/endpoint.js';
import { renderMetrics } from '../../../src/cli/metrics.js';
import { renderFacts, renderTable } from '../../../src/cli/output.js';
import { buildProgram } from '../../../src/cli/program.js';
import { findRealFiles } from '../../../src/cli/tour_steps.js';
import { freePort } from '../../free_port.js';

const cli = fileURLToPath(new URL('../../../src/cli/main.js', import.meta.url));
const program = buildProgram(() => undefined);
const names = program.commands.map((command) => command.name());

interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

function extmemWith(environment: NodeJS.ProcessEnv, ...args: string[]): Ended {
  return spawnSync(process.execPath, [cli, ...args], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '', XDG_STATE_HOME: '/nonexistent', HOME: '/nonexistent', ...environment },
  });
}

const extmem = (...args: string[]): Ended => extmemWith({}, ...args);

describe('commands', () => {
  test('all of them are there', () => {
    const wanted = [
      'up',
      'appliance',
      'manager',
      'migrate',
      'mount',
      'health',
      'umount',
      'create',
      'access',
      'persist',
      'restore',
      'resize',
      'rm',
      'ls',
      'info',
      'jobs',
      'status',
      'rebuild',
      'regions',
      'doctor',
      'check',
      'drain',
      'evict',
      'watch',
      'warm',
      'pin',
      'unpin',
      'config',
      'completion',
      'tour',
    ];
    expect([...names].sort()).toEqual(wanted.sort());
  });

  test('config prints no secret', () => {
    const variables = ['EXTMEM_TOKEN', 'EXTMEM_KEY', 'EXTMEM_STORE_KEY'];
    const environment = Object.fromEntries(variables.map((name) => [name, 'for-nobodys-eyes']));
    const { status, stdout } = extmemWith(environment, 'config');
    expect({ status, shown: stdout.includes('for-nobodys-eyes') }).toEqual({ status: 0, shown: false });
    for (const name of variables) expect(stdout).toMatch(new RegExp(`\\(hidden\\) +${name} `));
  });

  test.each(names)('%s --help has examples, exit codes and --json', (name) => {
    const { status, stdout } = extmem(name, '--help');
    expect(status).toBe(0);
    expect(stdout).toMatch(new RegExp(`Examples:\\n(.*\\n)*.*extmem ${name}|Examples:\\n.*completion`));
    expect(stdout).toContain('Exit codes:');
    expect(stdout).toContain('--json');
  });

  test.each([
    [['bogus']],
    [['create']],
    [['ls', '--bogus']],
    [['up', '--memory', 'lots']],
    [['mount']],
    [['create', '/x']],
    [['resize', '/x', 'big', '--token', 't']],
  ])('%p is wrong usage: exit 2', (args) => {
    const { status, stderr } = extmem(...args);
    expect({ status, told: stderr !== '' }).toEqual({ status: 2, told: true });
  });

  test('no manager there: exit 3, and what to do', () => {
    const { status, stderr } = extmem('ls', '--manager', '127.0.0.1:1', '--token', 'token');
    expect(status).toBe(3);
    expect(stderr).toMatch(/no manager answers at .*extmem manager/);
  });

  test('with --json an error is JSON', () => {
    const { status, stderr } = extmem('umount', '/nonexistent/mount', '--json');
    expect(status).toBe(5);
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: 'ENOENT' } });
  });

  test('the version is that of package.json', () => {
    expect(extmem('--version').stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});

describe('bash completion', () => {
  const complete = (...words: string[]): string[] => {
    const script = `${renderBashCompletion(program)}\nCOMP_WORDS=(extmem ${words.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${words.length}; _extmem; printf '%s\\n' "\${COMPREPLY[@]}"`;
    return spawnSync('bash', ['--norc', '-c', script], { encoding: 'utf8' }).stdout.split('\n').filter(Boolean);
  };

  test('completes commands, flags and their values', () => {
    expect(complete('mou')).toEqual(['mount']);
    expect(complete('mount', '--transp')).toEqual(['--transport']);
    expect(complete('mount', '--transport', 's')).toEqual(['shm']);
    expect(complete('umount', '/pro')).toEqual(['/proc']);
    expect(complete('completion', '')).toEqual(['bash']);
    expect(complete('pin', '/proc/cpuin')).toEqual(['/proc/cpuinfo']);
    expect(complete('warm', '--off')).toEqual(['--offset']);
  });
});

describe('metrics', () => {
  test('nested counters become lines with labels; what is no number is passed over', () => {
    const text = renderMetrics(
      'extmem_appliance',
      { id: 'one', registered: true, memory: { donatedBytes: 5 }, list: [1] },
      { appliance: 'a"b' },
    );
    expect(text.split('\n').filter((line) => !line.startsWith('#') && line !== '')).toEqual([
      'extmem_appliance_registered{appliance="a\\"b"} 1',
      'extmem_appliance_memory_donated_bytes{appliance="a\\"b"} 5',
    ]);
  });

  test.each([
    ['9100', { host: '127.0.0.1', port: 9100 }],
    ['10.0.0.1:9100', { host: '10.0.0.1', port: 9100 }],
    ['[::1]:9100', { host: '::1', port: 9100 }],
  ])('--http %s', (text, expected) => {
    expect(parseHttpAddress(text)).toEqual(expected);
    expect(() => parseHttpAddress(`${text}x`)).toThrow(/--http/);
  });

  test('/healthz is 503 with the reason while something is wrong', async () => {
    const port = await freePort();
    const state: { problem?: string } = {};
    const listening = await serveOnHttp(String(port), { metrics: () => 'metric 1\n', unhealthy: () => state.problem });
    expect(await fetchText(port, '/healthz')).toEqual({ status: 200, body: '{"status":"ok"}\n' });
    state.problem = 'no manager';
    expect(await fetchText(port, '/healthz')).toEqual({ status: 503, body: '{"status":"failing","why":"no manager"}\n' });
    expect(await fetchText(port, '/metrics')).toEqual({ status: 200, body: 'metric 1\n' });
    expect((await fetchText(port, '/other')).status).toBe(404);
    await expect(serveOnHttp(String(port), { metrics: () => '', unhealthy: () => undefined })).rejects.toMatchObject({
      code: 'EADDRINUSE',
    });
    listening.close();
  });
});

function fetchText(port: number, path: string): Promise<{ status: number; body: string }> {
  return new Promise((done, failed) => {
    get({ host: '127.0.0.1', port, path, agent: false }, (answer) => {
      let body = '';
      answer.setEncoding('utf8').on('data', (piece: string) => (body += piece));
      answer.on('end', () => done({ status: answer.statusCode ?? 0, body }));
    }).on('error', failed);
  });
}

test('tables align numbers to the right', () => {
  expect(
    renderTable(
      ['NAME', 'SIZE'],
      [
        ['a', '1 KiB'],
        ['long', '10 KiB'],
      ],
    ),
  ).toBe('NAME    SIZE\na      1 KiB\nlong  10 KiB');
  expect(
    renderFacts([
      ['a', '1'],
      ['long', '2'],
    ]),
  ).toBe('a:    1\nlong: 2');
});

test('the tour has at least 100 MB of real files', () => {
  expect(findRealFiles().length).toBeGreaterThan(1);
});
