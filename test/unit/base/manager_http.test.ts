/** Asking the manager: an answer is waited for as long as the asker says, so that what takes a disk's time is not taken for silence. */
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from '@jest/globals';
import { askManager } from '../../../src/base/manager_http.js';

test('whoever answers late is waited for as long as was said, and no longer', async () => {
  const waiting: ServerResponse[] = [];
  const server = createServer((_request, answer) => void waiting.push(answer));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = { manager: `127.0.0.1:${(server.address() as AddressInfo).port}`, token: 'secret' };
  const patient = askManager(address, 'POST', '/v1/persist', {}, 600_000);
  await once(server, 'request');
  await expect(askManager(address, 'POST', '/v1/persist', {}, 50)).rejects.toMatchObject({
    code: 'EUNREACHABLE',
    message: expect.stringContaining('no answer within 50 ms') as unknown,
  });
  waiting[0]?.end('{"appliances":["a1"]}');
  expect(await patient).toEqual({ appliances: ['a1'] });
  server.close();
});
