/** Settings: which layer wins, what is said about wrong ones, and where each value is told to come from. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { parseListen, parseManager } from '../../../src/cli/connection.js';
import { claimFolder, processStart, readRunning, releaseFolder } from '../../../src/cli/running.js';
import { localMemory } from '../../../src/cli/roles.js';
import { defaultSources, resolveSettings, settings, type SettingName, type Sources } from '../../../src/cli/settings.js';

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'extmem-settings-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, content: unknown): string {
  const path = join(folder, name);
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

function sources(overrides: Partial<Sources> = {}): Sources {
  return { environment: {}, files: [], config: undefined, running: {}, runningFrom: 'up', ...overrides };
}

const everything = Object.keys(settings) as SettingName[];

describe('local memory', () => {
  const given = (flags: Record<string, string>): ReturnType<typeof localMemory> =>
    localMemory(resolveSettings(['cache', 'memoryLimit'], flags, sources()));

  test('without a limit it is the cache alone', () => {
    expect(given({})).toEqual({ cacheBytes: 1024 ** 3, memoryLimitBytes: undefined });
  });

  test('of a limit, half is cache, unless that was asked for', () => {
    expect(given({ memoryLimit: '64M' })).toEqual({ cacheBytes: 32 * 1024 ** 2, memoryLimitBytes: 64 * 1024 ** 2 });
    expect(given({ memoryLimit: '16G' }).cacheBytes).toBe(1024 ** 3);
    expect(given({ memoryLimit: '64M', cache: '50M' }).cacheBytes).toBe(50 * 1024 ** 2);
  });

  test('a limit that leaves nothing to the kernel is refused', () => {
    expect(() => given({ memoryLimit: '64M', cache: '60M' })).toThrow(/--memory-limit 64 MiB .* 8 MiB at least/);
  });
});

describe('layers', () => {
  test('each later layer wins over the ones before it', () => {
    const given = sources({
      running: { manager: 'up' },
      files: [join(folder, 'absent'), file('etc', { manager: 'etc' }), file('home', { manager: 'home' })],
    });
    expect(resolveSettings([], {}, sources()).required('manager')).toBe('127.0.0.1:7070');
    expect(resolveSettings([], {}, { ...given, files: [] }).required('manager')).toBe('up');
    expect(resolveSettings([], {}, { ...given, files: given.files.slice(0, 2) }).required('manager')).toBe('etc');
    expect(resolveSettings([], {}, given).required('manager')).toBe('home');
    const named = { ...given, config: file('config', { manager: 'config' }) };
    expect(resolveSettings([], {}, named).required('manager')).toBe('config');
    const environment = { ...named, environment: { EXTMEM_MANAGER: 'environment' } };
    expect(resolveSettings([], {}, environment).required('manager')).toBe('environment');
    expect(resolveSettings(['manager'], { manager: 'flag' }, environment).required('manager')).toBe('flag');
  });

  test('a value remembers where it is from', () => {
    const found = resolveSettings(['cache'], { cache: '2G' }, sources({ environment: { EXTMEM_THREADS: '3' } }));
    expect(found.origin('cache')).toEqual({ text: '2G', from: '--cache' });
    expect(found.origin('threads')).toEqual({ text: '3', from: 'EXTMEM_THREADS' });
    expect(found.origin('transport')).toEqual({ text: 'auto', from: 'default' });
    expect(found.required('cache')).toBe(2 * 1024 ** 3);
    expect(found.required('threads')).toBe(3);
  });

  test('a token from a later layer puts out a token file from an earlier one, and the other way round', () => {
    const given = sources({ files: [file('home', { tokenFile: '/file' })], environment: { EXTMEM_TOKEN: 'word' } });
    expect(resolveSettings(['tokenFile'], {}, given).optional('tokenFile')).toBeUndefined();
    const flagged = resolveSettings(['tokenFile'], { tokenFile: '/flag' }, given);
    expect(flagged.optional('token')).toBeUndefined();
    expect(flagged.optional('tokenFile')).toBe('/flag');
  });
});

describe('what cannot be used', () => {
  test.each([
    ['not JSON', '{', /cannot be used/],
    ['not an object', '[1]', /JSON object/],
    ['an unknown setting', '{"cahce": "1G"}', /no setting 'cahce'.*cache/],
    ['a value of another kind', '{"cache": true}', /string or a number/],
  ])('%s in a configuration file is a usage error', (_, content, message) => {
    const config = file('config', content);
    expect(() => resolveSettings([], {}, sources({ config }))).toThrow(message);
  });

  test('a wrong value is told with the layer that it is from', () => {
    const found = resolveSettings([], {}, sources({ environment: { EXTMEM_CACHE: 'lots' } }));
    expect(() => found.required('cache')).toThrow(/EXTMEM_CACHE.*'lots' is not a size/);
  });

  test('a setting that nobody gave is asked for by flag, variable and key', () => {
    expect(() => resolveSettings([], {}, sources()).required('memory')).toThrow(/--memory <size>.*EXTMEM_MEMORY.*"memory"/);
  });
});

test('every default can be parsed', () => {
  const found = resolveSettings([], {}, sources());
  for (const name of everything) expect(() => found.optional(name)).not.toThrow();
});

test('every setting has a variable of its own', () => {
  expect(new Set(everything.map((name) => settings[name].env)).size).toBe(everything.length);
});

describe('the note of a running up', () => {
  const facts = { manager: 'http://127.0.0.1:7070', tokenFile: '/token', mountPoint: '/mnt' };

  test('is a layer for other commands while its process lives', () => {
    const dir = join(folder, 'extmem/up');
    claimFolder(dir, facts);
    const found = defaultSources(undefined, { XDG_STATE_HOME: folder, HOME: folder });
    expect(found.running).toEqual({ manager: facts.manager, tokenFile: facts.tokenFile });
    releaseFolder(dir);
    expect(readRunning(dir)).toBeUndefined();
  });

  test('of a process that is gone, or of another one with its id, counts for nothing', () => {
    claimFolder(folder, facts);
    const note = readRunning(folder);
    expect(note?.pid).toBe(process.pid);
    writeFileSync(join(folder, 'up.json'), JSON.stringify({ ...note, started: '1' }));
    expect(readRunning(folder)).toBeUndefined();
  });

  test('keeps a second up out of the folder', () => {
    claimFolder(folder, facts);
    const another = { pid: process.ppid, started: processStart(process.ppid) };
    writeFileSync(join(folder, 'up.json'), JSON.stringify({ ...readRunning(folder), ...another }));
    expect(() => claimFolder(folder, facts)).toThrow(/runs already/);
  });
});

describe('addresses', () => {
  test.each([
    ['10.0.0.1', 'http://10.0.0.1:7070'],
    ['host:7071', 'http://host:7071'],
    ['https://host', 'https://host:7070'],
    ['http://host:80/', 'http://host:80'],
    ['[::1]', 'http://[::1]:7070'],
    ['[fe80::1]:9', 'http://[fe80::1]:9'],
  ])('the manager %s is %s', (text, url) => {
    expect(parseManager(text)).toBe(url);
  });

  test.each(['', 'a b', 'host:99999', 'ftp://host', '::1', 'host:port'])('the manager %p is refused', (text) => {
    expect(() => parseManager(text)).toThrow(/no address of a manager/);
  });

  test.each([
    ['10.0.0.1', { address: '10.0.0.1', port: 7 }],
    ['10.0.0.1:0', { address: '10.0.0.1', port: 0 }],
    [':80', { address: undefined, port: 80 }],
    ['', { address: undefined, port: 7 }],
    ['[::]:80', { address: '::', port: 80 }],
  ])('listening on %p', (text, expected) => {
    expect(parseListen(text, 7)).toEqual(expected);
  });
});
