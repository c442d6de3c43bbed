// Layering gate for both languages: imports of src/ (dependency-cruiser, rules in .dependency-cruiser.cjs) and #includes of
// native/ (below). Each check first runs on a canary, a small tree that breaks the rules: a gate that lets it pass is broken.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Which layers each layer of native/ may include, besides itself. region and fabric speak the same protocol and never know each other. */
const below = {
  base: [],
  store: ['base'],
  region: ['base', 'store'],
  fabric: ['base'],
  move: ['base', 'region', 'fabric'],
  extent: ['base', 'fabric'],
  cache: ['base', 'fabric', 'extent'],
  fuse: ['base', 'fabric', 'extent', 'cache'],
  binding: ['base', 'store', 'region', 'fabric', 'move', 'extent', 'cache', 'fuse'],
};

/** Tests, benchmarks and test programs put both ends together. */
const isProgram = (path) => /_(test|main|bench)\.(cc|h)$/.test(path) || /(^|\/)(test|testing)\//.test(path);

function nativeViolations(nativeRoot) {
  const found = [];
  const files = readdirSync(nativeRoot, { recursive: true, encoding: 'utf8' }).filter((path) => /\.(cc|h)$/.test(path) && !isProgram(path));
  for (const path of files) {
    const layer = path.split('/')[0];
    const allowed = below[layer];
    if (!allowed) {
      if (path.includes('/')) found.push(`native/${path}: '${layer}' is no layer; there are ${Object.keys(below).join(', ')}`);
      continue;
    }
    for (const [index, line] of readFileSync(join(nativeRoot, path), 'utf8').split('\n').entries()) {
      const included = /^\s*#\s*include\s+"([^"]+)"/.exec(line)?.[1];
      if (included === undefined) continue;
      const other = included.split('/')[0];
      if (included.includes('..'))
        found.push(`native/${path}:${index + 1}: includes "${included}" by a relative path; name it from native/`);
      else if (other in below && other !== layer && !allowed.includes(other))
        found.push(`native/${path}:${index + 1}: ${layer} includes ${included}, which is not below it`);
    }
  }
  return { found, files: files.length };
}

function typescriptViolations(folder) {
  const cruiser = join(root, 'node_modules/dependency-cruiser/bin/dependency-cruise.mjs');
  const run = spawnSync(process.execPath, [cruiser, '--config', '.dependency-cruiser.cjs', '--output-type', 'json', 'src'], {
    cwd: folder,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  let result;
  try {
    result = JSON.parse(run.stdout);
  } catch {
    throw new Error(`dependency-cruiser said: ${run.stderr || run.stdout}`);
  }
  const { violations, totalCruised } = result.summary;
  const describe = ({ rule, from, to, cycle }) =>
    `${rule.name}: ${from} -> ${cycle ? cycle.map((step) => step.name ?? step).join(' -> ') : to}`;
  return { found: violations.map(describe), files: totalCruised };
}

/** Builds a tree with one violation of each kind and answers those that the gate did not see. */
function unseenCanaries() {
  const folder = mkdtempSync(join(tmpdir(), 'extmem-layering-'));
  try {
    const write = (path, content) => {
      mkdirSync(dirname(join(folder, path)), { recursive: true });
      writeFileSync(join(folder, path), content);
    };
    for (const file of ['.dependency-cruiser.cjs', 'tsconfig.json', 'package.json']) cpSync(join(root, file), join(folder, file));
    write('src/base/low.ts', "import { high } from '../manager/high.js';\nexport const low: number = high;\n");
    write('src/manager/high.ts', "import { other } from '../client/other.js';\nexport const high: number = other;\n");
    write('src/client/other.ts', "import { low } from '../base/low.js';\nexport const other: number = low;\n");
    write('native/fabric/low.h', '#include "fuse/session.h"\n');
    write('native/region/server.cc', '#include "fabric/transport.h"\n');
    write('native/region/server_test.cc', '#include "fabric/transport.h"\n');
    const native = nativeViolations(join(folder, 'native')).found.join('\n');
    const typescript = typescriptViolations(folder).found.join('\n');
    const unseen = [];
    for (const [name, seen] of [
      ['#include upwards', /fabric includes fuse/.test(native)],
      ['#include sideways', /region includes fabric/.test(native)],
      ['tests may include both ends', !/server_test/.test(native)],
      ['import upwards', /base-imports-only-what-is-below/.test(typescript)],
      ['import sideways', /manager-imports-only-what-is-below/.test(typescript)],
      ['import cycle', /no-cycles/.test(typescript)],
    ]) {
      if (!seen) unseen.push(name);
    }
    return unseen;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const unseen = unseenCanaries();
if (unseen.length > 0) {
  process.stderr.write(`layering: the gate is broken, its canary was not seen: ${unseen.join(', ')}\n`);
  process.exit(2);
}
const native = nativeViolations(join(root, 'native'));
const typescript = typescriptViolations(root);
const found = [...native.found, ...typescript.found];
for (const line of found) process.stderr.write(`layering: ${line}\n`);
process.stdout.write(
  `layering: ${typescript.files} modules of ${relative(process.cwd(), join(root, 'src')) || '.'}, ${native.files} native files, ${found.length} violations\n`,
);
process.exit(found.length > 0 ? 1 : 0);
