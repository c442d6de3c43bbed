// The layers of the TypeScript side, bottom to top. Imports go down this list, never up or sideways:
//   base <- binding <- manager | appliance | client <- fs <- cli
// (fs stands on client alone; cli starts every role.) scripts/layering.mjs runs this, does the same for #includes, and proves
// with a canary that both can fail.
const below = {
  base: [],
  binding: ['base'],
  manager: ['base', 'binding'],
  appliance: ['base', 'binding'],
  client: ['base', 'binding'],
  fs: ['base', 'binding', 'client'],
};

module.exports = {
  forbidden: [
    {
      // Types are gone when the program runs, and what is imported on demand is loaded after both: neither makes a cycle.
      name: 'no-cycles',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only', 'dynamic-import'] } },
    },
    { name: 'no-missing-modules', severity: 'error', from: {}, to: { couldNotResolve: true } },
    { name: 'sources-import-no-tests', severity: 'error', from: { path: '^src/' }, to: { path: '^(test|bench|scripts)/' } },
    ...Object.entries(below).map(([layer, lower]) => ({
      name: `${layer}-imports-only-what-is-below`,
      severity: 'error',
      from: { path: `^src/${layer}/` },
      to: { path: '^src/', pathNot: `^src/(${[layer, ...lower].join('|')})/` },
    })),
    {
      name: 'only-binding-loads-the-addon',
      severity: 'error',
      from: { path: '^src/', pathNot: '^src/binding/' },
      to: { path: '\\.node$' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'node', 'default', 'types'] },
  },
};
