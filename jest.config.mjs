// Tests run as compiled ES modules from dist/test (scripts/setup --test compiles them). Projects: `unit`, whose files run
// side by side, `durability` (npm run test:durability), and `mount` (whatever mounts or starts processes), one file at a time.
const serial = ['native', 'mount', 'model', 'stress', 'contract', 'gates', 'rdma', 'simulation'];

const common = {
  testEnvironment: 'node',
  transform: {},
  // What git ignores by the same name elsewhere (a copy of the repository, say) is not ours.
  modulePathIgnorePatterns: ['<rootDir>/mounts/', '<rootDir>/build/'],
};

/** @type {import('jest').Config} */
export default {
  projects: [
    { ...common, displayName: 'unit', testMatch: ['<rootDir>/dist/test/unit/**/*.test.js'] },
    { ...common, displayName: 'durability', testMatch: ['<rootDir>/dist/test/durability/**/*.test.js'] },
    { ...common, displayName: 'mount', testMatch: serial.map((folder) => `<rootDir>/dist/test/${folder}/**/*.test.js`) },
  ],
  testTimeout: 60_000,
};
