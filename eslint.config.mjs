// What a person would otherwise have to look for in review: types are checked strictly, promises are not forgotten.
// Taste is left to prettier (format) and to the reader.
import tseslint from 'typescript-eslint';

export default tseslint.config(
  { ignores: ['node_modules/', 'build/', 'dist/', 'mounts/', 'src/base/protocol.ts'] },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-explicit-any': 'error',
      // A number, a boolean or a URL in a message is what was meant.
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true, allowNullish: false }],
      // `() => void f()` and `() => f()` where nothing is wanted of the result read alike.
      '@typescript-eslint/no-confusing-void-expression': 'off',
      // Interfaces promise Promises; an implementation that need not wait still gives one.
      '@typescript-eslint/require-await': 'off',
      // Index signatures of the environment and of foreign JSON are told apart from fields by brackets.
      '@typescript-eslint/dot-notation': 'off',
      // noUncheckedIndexedAccess makes `!` and needless conditions rare; where a bound was checked just above, they stay readable.
      '@typescript-eslint/no-unnecessary-condition': 'off',
      '@typescript-eslint/no-unnecessary-type-parameters': 'off',
      '@typescript-eslint/no-dynamic-delete': 'off',
      '@typescript-eslint/unified-signatures': 'off',
      '@typescript-eslint/no-misused-promises': ['error', { checksVoidReturn: { arguments: false } }],
      '@typescript-eslint/no-unused-vars': [
        'error',
        { argsIgnorePattern: '^_', varsIgnorePattern: '^_', destructuredArrayIgnorePattern: '^_' },
      ],
      '@typescript-eslint/switch-exhaustiveness-check': 'error',
      'max-lines': ['error', { max: 600 }],
      'max-lines-per-function': ['error', { max: 70, skipComments: true }],
      eqeqeq: 'error',
      'no-console': 'error',
    },
  },
  {
    // A describe block is one function to the linter, and as long as the behaviours it holds.
    files: ['test/**/*.ts', 'bench/**/*.ts'],
    rules: { 'max-lines-per-function': 'off', 'no-console': 'off', '@typescript-eslint/no-non-null-assertion': 'off' },
  },
);
