/** The address of this host on the way to the manager: what clients elsewhere can most likely reach us by. */
import { connect } from 'node:net';
import { ExtmemError } from '../base/errors.js';
import { managerUnreachable, managerUrl } from '../base/manager_http.js';

const timeoutMs = 5000;

export function findLocalAddress(manager: string): Promise<string> {
  const url = managerUrl(manager);
  const host = url.hostname.replace(/^\[|\]$/g, '');
  const port = Number(url.port || (url.protocol === 'https:' || url.protocol === 'wss:' ? 443 : 80));
  return new Promise((done, failed) => {
    const socket = connect({ host, port });
    const fail = (code: string, why: string): void => {
      socket.destroy();
      failed(managerUnreachable(`${host}:${port}`, new ExtmemError(code, why)));
    };
    socket.setTimeout(timeoutMs, () => fail('ETIMEDOUT', `no answer within ${timeoutMs / 1000} s`));
    socket.once('error', (error: NodeJS.ErrnoException) => fail(error.code ?? 'EIO', error.message));
    socket.once('connect', () => {
      const address = socket.localAddress ?? '127.0.0.1';
      socket.destroy();
      done(address.replace(/^::ffff:(?=\d+\.)/, ''));
    });
  });
}
