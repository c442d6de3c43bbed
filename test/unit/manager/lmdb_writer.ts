/** Writes to a store until it is killed, and says what was answered. For lmdb_store.test.ts. */
import { openLmdbStore } from '../../../src/manager/lmdb_store.js';

const store = openLmdbStore(process.argv[2] ?? '');
for (let count = 1; ; count++) {
  await store.transact((tx) => {
    tx.put(`entry/${String(count).padStart(8, '0')}`, Buffer.alloc(200));
    tx.put('count', count);
  });
  process.send?.(count);
}
