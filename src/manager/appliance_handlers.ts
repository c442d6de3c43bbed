/**
 * What appliances may ask: join (the cluster's key), hello (register), heartbeat, goodbye.
 */
import { ExtmemError } from '../base/errors.js';
import type { applianceOperations } from '../base/messages.js';
import { HEARTBEAT_MS, PROTOCOL_VERSION } from '../base/protocol.js';
import type { Handlers } from '../base/session.js';
import type { Appliance, ApplianceSession } from './appliances.js';
import type { Parts } from './parts.js';

export interface ApplianceConnection {
  handlers: Handlers<typeof applianceOperations>;
  /** Must be called before the first request is handled. */
  attach(session: ApplianceSession): void;
}

export function applianceConnection(parts: Parts): ApplianceConnection {
  const { appliances, clients, regions, log } = parts;
  let session: ApplianceSession | undefined;
  let appliance: Appliance | undefined;
  const done = {};
  const checkVersion = (version: number): void => {
    if (version !== PROTOCOL_VERSION)
      throw new ExtmemError(
        'EVERSION',
        `this manager speaks version ${PROTOCOL_VERSION}, the appliance ${version}; install the same extmem on both`,
      );
  };
  const handlers: Handlers<typeof applianceOperations> = {
    join: ({ version, id }) => {
      checkVersion(version);
      return { clusterKey: parts.clusterKey, access: regions.accessOn(id) };
    },
    hello: async (ask) => {
      checkVersion(ask.version);
      const opened = session;
      if (opened === undefined || appliance !== undefined) throw new ExtmemError('EPROTO', 'hello comes once');
      const registered = await appliances.register(ask.appliance, opened, ask.restored);
      appliance = registered;
      // Once the answer is on its way: it is used when it has acknowledged the fences that it owes.
      setImmediate(() => {
        appliances
          .confirm(registered, opened, () => clients.dead())
          .catch((error: unknown) => {
            log.error({ appliance: registered.id, error }, 'an appliance did not acknowledge a fence that it owes');
            opened.close('fences were not acknowledged');
          });
      });
      return {
        clusterKey: parts.clusterKey,
        heartbeatMs: HEARTBEAT_MS,
        dead: clients.dead(),
        regions: regions.idsOn(registered.id, registered.info.incarnation),
        access: regions.accessOn(registered.id),
      };
    },
    heartbeat: (memory) => {
      if (appliance === undefined) throw new ExtmemError('EPROTO', 'hello must come first');
      appliances.noteMemory(appliance, memory);
      return done;
    },
    goodbye: async ({ kept }) => {
      if (appliance !== undefined) await appliances.leave(appliance, kept === true);
      return done;
    },
  };
  return { handlers, attach: (opened) => void (session = opened) };
}
