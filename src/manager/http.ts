/**
 * The manager's HTTP interface: the API of administrators and programs (described at /openapi.json), metrics, and the two
 * WebSocket endpoints on which clients and appliances have their sessions. Without the join token nothing but /healthz answers;
 * whoever is refused is logged once per address.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import websocket from '@fastify/websocket';
import swagger from '@fastify/swagger';
import { Type, type Static } from '@sinclair/typebox';
import { fastify, type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { LRUCache } from 'lru-cache';
import { ExtmemError, messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { KEYS_HEADER, NAME_HEADER } from '../base/manager_http.js';
import {
  ApplianceInfo,
  applianceOperations,
  appliancePushes,
  clientOperations,
  clientPushes,
  Durability,
  AcrossName,
  type Operations,
} from '../base/messages.js';
import { MAX_FRAME_BYTES, Session, type Handlers, type SessionSocket, type SessionTables } from '../base/session.js';
import { MAX_KEYS, type Identity } from './access.js';
import { applianceConnection } from './appliance_handlers.js';
import { clientConnection } from './client_handlers.js';
import { addJobRoutes, ErrorAnswer } from './http_jobs.js';
import { limits } from './limits.js';
import { renderMetrics } from './metrics.js';
import type { Parts } from './parts.js';
import { describeRegion, listRegions } from './region_list.js';
import { describeHealth, describeSpace, describeStatus } from './status.js';

export interface HttpOptions {
  token: string;
  tls?: { cert: string | Buffer; key: string | Buffer };
  log: Logger;
}

const AccessRules = Type.String({ maxLength: 16 * 1024 });
const AccessKey = Type.String({ minLength: 1, maxLength: 1024 });
const CreateBody = Type.Object({
  path: Type.String({ minLength: 1 }),
  bytes: Type.Integer({ minimum: 0 }),
  /** As `--layout`: stripe, concat, mirror, raid10, mirror:3 … */
  layout: Type.Optional(Type.String()),
  /** What the copies must not share. */
  across: Type.Optional(AcrossName),
  durability: Type.Optional(Durability),
  /** What people call it: a line of text. */
  label: Type.Optional(Type.String()),
  /** Regions of its own, whatever its size. */
  dedicated: Type.Optional(Type.Boolean()),
  /** Who may do what with it: rules, and the key that those with `key` ask for. It then has regions of its own. */
  access: Type.Optional(AccessRules),
  accessKey: Type.Optional(AccessKey),
});
const AccessBody = Type.Object({ rules: AccessRules, key: Type.Optional(AccessKey) });
/** A new size; or a range that becomes a hole, is taken out, or is put in as a hole. */
const ResizeBody = Type.Union([
  Type.Object({ bytes: Type.Integer({ minimum: 0 }) }),
  Type.Object({
    how: Type.Union([Type.Literal('punch'), Type.Literal('collapse'), Type.Literal('insert')]),
    offset: Type.Integer({ minimum: 0, maximum: limits.fileBytes }),
    length: Type.Integer({ minimum: 1, maximum: limits.fileBytes }),
  }),
]);
const PersistBody = Type.Object({
  path: Type.Optional(Type.String({ minLength: 1 })),
  free: Type.Optional(Type.Boolean({ description: 'give its memory back; it comes home when it is asked for' })),
});
const AcceptBody = Type.Object({ path: Type.String({ minLength: 1 }) });
const ListQuery = Type.Object({
  path: Type.String({ default: '/' }),
  after: Type.Integer({ minimum: 0, default: 0 }),
  limit: Type.Integer({ minimum: 1, maximum: 4096, default: 4096 }),
});
const RegionsQuery = Type.Object({ appliance: Type.Optional(Type.String({ minLength: 1 })) });
const RegionParams = Type.Object({ region: Type.Integer({ minimum: 1 }) });
/** The path of an allocation stands in the URL, or in the query where that is easier. */
const PathParams = Type.Object({ '*': Type.Optional(Type.String()) });
const PathQuery = Type.Object({ path: Type.Optional(Type.String()), recursive: Type.Boolean({ default: false }) });
const Anything = Type.Unsafe<Record<string, unknown>>({ type: 'object', additionalProperties: true });

const statusOfCode: Record<string, number> = {
  EACCES: 403,
  EOPNOTSUPP: 409,
  ENOENT: 404,
  EEXIST: 409,
  EBUSY: 409,
  EAGAIN: 409,
  ENOTEMPTY: 409,
  EINVAL: 400,
  EISDIR: 400,
  ENOTDIR: 400,
  ENAMETOOLONG: 400,
  EFBIG: 400,
  ENOSPC: 507,
  ENOTSUP: 409,
  EDOMAIN: 409,
  ESTORE: 507,
};

export async function createHttp(parts: Parts, options: HttpOptions): Promise<FastifyInstance> {
  const { log } = options;
  const refused = new RefusalLog(log);
  const app = fastify({
    // A peer that keeps a connection open does not keep the manager from ending.
    forceCloseConnections: true,
    routerOptions: { maxParamLength: limits.pathBytes },
    ...(options.tls === undefined ? {} : { https: options.tls }),
    clientErrorHandler: (error, socket) => {
      refused.note(socket.remoteAddress ?? 'unknown', `what it sent is not HTTP: ${error.message}`);
      if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n');
      else socket.destroy();
    },
  }) as unknown as FastifyInstance;
  await app.register(swagger, {
    openapi: {
      info: { title: 'extmem manager', version: '1' },
      components: { securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
      security: [{ token: [] }],
    },
  });
  await app.register(websocket, { options: { maxPayload: MAX_FRAME_BYTES, perMessageDeflate: false } });
  app.addHook('onRequest', async (request, reply) => {
    if (request.url === '/healthz' || isTokenRight(request, options.token)) return;
    refused.note(request.ip, 'its join token is missing or wrong');
    await reply
      .code(401)
      .send({ code: 'EACCES', message: 'the join token is missing or wrong; send it as `Authorization: Bearer <token>`' });
  });
  app.setErrorHandler((error, _request, reply) => answerError(error, reply, log));
  addRoutes(app, parts);
  addSessions(app, parts, refused);
  await app.ready();
  return app;
}

function addRoutes(app: FastifyInstance, parts: Parts): void {
  const { allocations } = parts;
  app.get('/healthz', { schema: { response: { 200: Type.Object({ ok: Type.Boolean() }) } } }, () => ({ ok: true }));
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger());
  app.get('/metrics', { schema: { hide: true } }, (_request, reply) => reply.type('text/plain; version=0.0.4').send(renderMetrics(parts)));
  app.get('/v1/status', { schema: { summary: 'Appliances, pool, clients, files', response: { 200: Anything } } }, () =>
    describeStatus(parts),
  );
  app.get('/v1/space', { schema: { summary: 'Room, per appliance and in all', response: { 200: Anything } } }, () => describeSpace(parts));
  app.get(
    '/v1/appliances',
    { schema: { summary: 'Known appliances', response: { 200: Type.Object({ appliances: Type.Array(ApplianceInfo) }) } } },
    () => ({ appliances: parts.applianceInfos() }),
  );
  app.get('/v1/health', { schema: { summary: 'What the machines of the appliances say of themselves', response: { 200: Anything } } }, () =>
    describeHealth(parts),
  );
  app.get<{ Querystring: Static<typeof ListQuery> }>(
    '/v1/allocations',
    { schema: { summary: 'Names in a directory', querystring: ListQuery, response: { 200: Anything } } },
    async (request) => {
      const { path, after, limit } = request.query;
      return allocations.list(path, { after, limit }, await identify(parts, request));
    },
  );
  app.post<{ Body: Static<typeof CreateBody> }>(
    '/v1/allocations',
    {
      schema: {
        summary: 'Create an allocation; its directory must exist',
        body: CreateBody,
        response: { 201: Anything, '4xx': ErrorAnswer, 507: ErrorAnswer },
      },
    },
    async (request, reply) => {
      const made = await allocations.create(request.body);
      return reply.code(201).send(made);
    },
  );
  app.post<{ Body: Static<typeof PersistBody> }>(
    '/v1/persist',
    {
      schema: {
        summary: 'Persist an allocation, or all of the pool, in the backing stores of the appliances',
        body: PersistBody,
        response: { 200: Anything, '4xx': ErrorAnswer, '5xx': ErrorAnswer },
      },
    },
    async (request) => allocations.persist(request.body, await identify(parts, request)),
  );
  app.post<{ Body: Static<typeof AcceptBody> }>(
    '/v1/restore',
    {
      schema: {
        summary: 'Accept the earlier state of an allocation that a backing store brought back',
        body: AcceptBody,
        response: { 200: Anything, '4xx': ErrorAnswer },
      },
    },
    async (request) => allocations.accept(request.body.path, await identify(parts, request)),
  );
  app.get('/v1/clients', { schema: { summary: 'Known clients', response: { 200: Anything } } }, () => ({
    clients: describeStatus(parts).clients,
  }));
  addRegionRoutes(app, parts);
  addJobRoutes(app, parts, (request) => identify(parts, request));
  addAllocationRoutes(app, parts);
}

function addRegionRoutes(app: FastifyInstance, parts: Parts): void {
  app.get<{ Querystring: Static<typeof RegionsQuery> }>(
    '/v1/regions',
    {
      schema: {
        summary: 'Regions, and what of them is in memory',
        querystring: RegionsQuery,
        response: { 200: Anything, 404: ErrorAnswer },
      },
    },
    async (request) => listRegions(parts, await identify(parts, request), request.query.appliance),
  );
  app.get<{ Params: Static<typeof RegionParams> }>(
    '/v1/regions/:region',
    { schema: { summary: 'One region, and which files lie in it', params: RegionParams, response: { 200: Anything, 404: ErrorAnswer } } },
    async (request) => describeRegion(parts, request.params.region, await identify(parts, request)),
  );
}

interface OnePath {
  Params: Static<typeof PathParams>;
  Querystring: Static<typeof PathQuery>;
}

function addAllocationRoutes(app: FastifyInstance, parts: Parts): void {
  const { allocations } = parts;
  const schema = (summary: string, more: Record<string, unknown> = {}) => ({
    schema: {
      summary,
      params: PathParams,
      querystring: PathQuery,
      response: { 200: Anything, '4xx': ErrorAnswer, 507: ErrorAnswer },
      ...more,
    },
  });
  const pathOf = (request: FastifyRequest<OnePath>): string => {
    const path = request.query.path ?? request.params['*'];
    if (path === undefined) throw new ExtmemError('EINVAL', 'name the allocation: /v1/allocations/<path>, or ?path=');
    return path;
  };
  app.get<OnePath>('/v1/allocations/*', schema('Information about an allocation'), async (request) =>
    allocations.info(pathOf(request), await identify(parts, request)),
  );
  app.post<OnePath>('/v1/allocations/*', schema('Renew an allocation (its path, then /renew)'), async (request) => {
    const { url } = request;
    if (!/\/renew(\?|$)/.test(url)) throw new ExtmemError('EINVAL', 'POST to an allocation only renews it: <path>/renew');
    return allocations.renew(pathOf(request).replace(/\/renew$/, ''), await identify(parts, request));
  });
  app.get<OnePath>('/v1/access/*', schema('Who may do what with an allocation'), async (request) =>
    allocations.showAccess(pathOf(request), await identify(parts, request)),
  );
  app.put<OnePath & { Body: Static<typeof AccessBody> }>(
    '/v1/access/*',
    schema('Change who may do what with an allocation; answered when what was handed out by what held before is taken back', {
      body: AccessBody,
    }),
    async (request) => allocations.changeAccess(pathOf(request), request.body, await identify(parts, request)),
  );
  for (const url of ['/v1/allocations', '/v1/allocations/*']) {
    app.patch<OnePath & { Body: Static<typeof ResizeBody> }>(url, schema('Resize an allocation', { body: ResizeBody }), async (request) => {
      const { body } = request;
      const who = await identify(parts, request);
      return 'how' in body ? allocations.reshape(pathOf(request), body, who) : allocations.resize(pathOf(request), body.bytes, who);
    });
    app.delete<OnePath>(
      url,
      schema('Destroy an allocation, or with recursive=true a directory and all in it', {
        response: { 204: Type.Null(), '4xx': ErrorAnswer },
      }),
      async (request, reply) => {
        await allocations.destroy(pathOf(request), request.query.recursive, await identify(parts, request));
        return reply.code(204).send(null);
      },
    );
  }
}

/** Who asks, as far as access parameters go by it. */
async function identify({ access }: Parts, request: FastifyRequest): Promise<Identity> {
  const header = (name: string): string => {
    const value = request.headers[name];
    return typeof value === 'string' ? value : '';
  };
  const shown = header(KEYS_HEADER)
    .split(',')
    .filter((key) => key !== '');
  if (shown.length > MAX_KEYS) throw new ExtmemError('EINVAL', `${shown.length} keys at once are more than ${MAX_KEYS}`);
  const keys = await Promise.all(shown.map((key) => access.digest(decode(key))));
  return { name: decode(header(NAME_HEADER)), address: request.ip, keys };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new ExtmemError('EINVAL', 'a header is not percent-encoded as it should be');
  }
}

function addSessions(app: FastifyInstance, parts: Parts, refused: RefusalLog): void {
  const open = <Out extends Operations, In extends Operations>(
    socket: SessionSocket,
    request: FastifyRequest,
    tables: SessionTables<Out, In>,
    handlers: Handlers<In>,
  ): Session<Out, In> =>
    new Session(socket, tables, handlers, {
      onError: (error) => {
        if (error instanceof ExtmemError) refused.note(request.ip, error.message);
        else parts.log.error({ err: error }, 'a request failed unexpectedly');
      },
    });
  app.get('/v1/clients/session', { websocket: true, schema: { hide: true } }, (socket, request) => {
    const connection = clientConnection(parts, request.ip);
    connection.attach(open(socket, request, { out: clientPushes, in: clientOperations }, connection.handlers));
  });
  app.get('/v1/appliances/session', { websocket: true, schema: { hide: true } }, (socket, request) => {
    const connection = applianceConnection(parts);
    connection.attach(open(socket, request, { out: appliancePushes, in: applianceOperations }, connection.handlers));
  });
}

/** Whoever is refused is logged once, not with every attempt. */
class RefusalLog {
  private readonly known = new LRUCache<string, true>({ max: limits.refusedPeersRemembered });
  constructor(private readonly log: Logger) {}

  note(address: string, why: string): void {
    const key = `${address} ${why}`;
    if (this.known.has(key)) return;
    this.known.set(key, true);
    this.log.warn({ address, why }, 'refused a peer');
  }
}

function answerError(error: unknown, reply: FastifyReply, log: Logger): FastifyReply {
  if (error instanceof ExtmemError) return reply.code(statusOfCode[error.code] ?? 500).send({ code: error.code, message: error.message });
  const status = error instanceof Error && 'statusCode' in error && typeof error.statusCode === 'number' ? error.statusCode : 500;
  const message = messageOf(error);
  if (status >= 500) log.error({ err: error }, 'a request failed unexpectedly');
  return reply.code(status).send({ code: status >= 500 ? 'EIO' : 'EINVAL', message });
}

function isTokenRight(request: FastifyRequest, token: string): boolean {
  const given = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1];
  return given !== undefined && timingSafeEqual(digest(given), digest(token));
}

/** Of equal length, whatever was given. */
function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
