/**
 * A session: symmetric, typed requests over one WebSocket, used between clients, appliances and the manager.
 *
 * Frames are MessagePack arrays: [0, id, op, ask] a request, [1, id, answer] its answer, [2, id, code, message] its failure. A
 * message is one or more of them: those of one turn of the event loop travel together (a message costs 60 to 100 µs of CPU at
 * both ends together, a frame in it a few).
 * Both directions are checked against the table of operations, when sent and when received.
 *
 * Invariants:
 * - Handlers are called in the order in which requests arrived; a handler that answers at once is answered in that order too.
 * - What awaits an answer runs before the handler of a request that arrived after that answer: a push that follows an
 *   answer on the wire (a recall after a grant) never overtakes it.
 * - Every call settles: by the answer, by its time limit, or when the session ends.
 * - Queues are bounded: calls in flight, requests being handled, bytes waiting to be sent.
 */
import { WebSocket, type RawData } from 'ws';
import { Packr } from 'msgpackr';
import { TypeCompiler, type TypeCheck } from '@sinclair/typebox/compiler';
import type { TSchema } from '@sinclair/typebox';
import { ExtmemError } from './errors.js';
import { managerUrl } from './manager_http.js';
import { HEARTBEAT_MS } from './protocol.js';
import type { Answer, Ask, Operations } from './messages.js';

export const MAX_FRAME_BYTES = 64 * 1024 * 1024;
/** Frames are joined to messages of about that size. */
const JOINED_BYTES = 1024 * 1024;
export const CALL_TIMEOUT_MS = 5000;
/** Of each direction; a peer that has more under way is answered EBUSY. */
const MAX_IN_FLIGHT = 16384;
/** A peer that does not read is cut off rather than remembered. */
const MAX_UNSENT_BYTES = 4 * MAX_FRAME_BYTES;
const SILENCE_MS = 3 * HEARTBEAT_MS;
const CHECK_MS = HEARTBEAT_MS / 2;
const CLOSE_GRACE_MS = 500;

const REQUEST = 0;
const ANSWER = 1;
const FAILURE = 2;

export interface SessionTables<Out extends Operations, In extends Operations> {
  /** What we ask of the peer. */
  out: Out;
  /** What the peer asks of us. */
  in: In;
}

export type Handlers<In extends Operations> = {
  [Name in keyof In]: (ask: Ask<In, Name>) => Answer<In, Name> | Promise<Answer<In, Name>>;
};

export interface SessionOptions {
  /** Called once for a handler's unexpected exception (the peer is told EIO) and for frames that are no frames. */
  onError?: (error: Error) => void;
}

export interface CallOptions {
  /** 0: no limit (the session's end still settles the call). */
  timeoutMs?: number;
}

/** The peer did not answer: `closed` (the session ended) or `timeout`. Its code is EIO, or ECLOSED after our own close(). */
export class SessionFailure extends ExtmemError {
  constructor(
    readonly reason: 'closed' | 'timeout',
    code: string,
    message: string,
  ) {
    super(code, message);
  }
}

/** What a session needs of a WebSocket of `ws`. */
export interface SessionSocket {
  binaryType: string;
  readonly readyState: number;
  readonly bufferedAmount: number;
  on(event: 'message', listener: (data: RawData, isBinary: boolean) => void): unknown;
  on(event: 'close', listener: (code: number, reason: Buffer) => void): unknown;
  on(event: 'error', listener: (error: Error) => void): unknown;
  on(event: 'ping' | 'pong', listener: () => void): unknown;
  send(data: Uint8Array, options: { binary: boolean }): void;
  ping(): void;
  close(code: number, reason: string): void;
  terminate(): void;
}

type Frame = [kind: number, id: number, third: unknown, fourth?: unknown];

interface PendingCall {
  op: string;
  resolve(value: unknown): void;
  reject(error: Error): void;
  timer: NodeJS.Timeout | undefined;
}

const packr = new Packr({ useRecords: false, int64AsType: 'number' });
const checks = new WeakMap<TSchema, TypeCheck<TSchema>>();

export class Session<Out extends Operations, In extends Operations> {
  /** Resolves, with the reason, when the session has ended. */
  readonly closed: Promise<ExtmemError>;

  private readonly pending = new Map<number, PendingCall>();
  private nextId = 1;
  private handling = 0;
  private failure: ExtmemError | undefined;
  private readonly ended: (reason: ExtmemError) => void;
  private lastReceivedAt = Date.now();
  private lastCheckAt = Date.now();
  private readonly liveness: NodeJS.Timeout;
  /** Requests that wait for the turn of the event loop after the answers that came before them. */
  private deferred: [number, string, unknown][] = [];
  private answeredThisTurn = false;
  /** Frames of this turn that are not sent yet. */
  private outgoing: Uint8Array[] = [];
  private outgoingBytes = 0;

  constructor(
    private readonly socket: SessionSocket,
    private readonly tables: SessionTables<Out, In>,
    private readonly handlers: Handlers<In>,
    private readonly options: SessionOptions = {},
  ) {
    let ended: (reason: ExtmemError) => void = () => undefined;
    this.closed = new Promise((resolve) => (ended = resolve));
    this.ended = ended;
    socket.binaryType = 'nodebuffer';
    socket.on('message', (data: RawData, isBinary: boolean) => this.receive(data, isBinary));
    socket.on('ping', () => (this.lastReceivedAt = Date.now()));
    socket.on('pong', () => (this.lastReceivedAt = Date.now()));
    socket.on('error', (error: Error) => this.finish(new SessionFailure('closed', 'EIO', `session broke: ${error.message}`)));
    socket.on('close', (_code: number, reason: Buffer) =>
      this.finish(
        new SessionFailure('closed', 'EIO', `session was closed by the peer${reason.length > 0 ? `: ${reason.toString()}` : ''}`),
      ),
    );
    this.liveness = setInterval(() => this.checkLiveness(), CHECK_MS);
  }

  get isOpen(): boolean {
    return this.failure === undefined;
  }

  /** Milliseconds since anything was heard of the peer. */
  get silentMs(): number {
    return Date.now() - this.lastReceivedAt;
  }

  call<Name extends keyof Out & string>(op: Name, ask: Ask<Out, Name>, options: CallOptions = {}): Promise<Answer<Out, Name>> {
    return new Promise((resolve, reject) => {
      if (this.failure !== undefined) return reject(this.failure);
      const table = this.tables.out[op];
      if (table === undefined) return reject(new ExtmemError('ENOSYS', `no operation ${op} in this direction`));
      const wrong = explain(table.ask, ask);
      if (wrong !== undefined) return reject(new ExtmemError('EINVAL', `asking ${op}: ${wrong}`));
      if (this.pending.size >= MAX_IN_FLIGHT)
        return reject(new ExtmemError('EBUSY', `asking ${op}: ${MAX_IN_FLIGHT} calls are under way already`));
      const id = this.nextId++;
      const timeoutMs = options.timeoutMs ?? CALL_TIMEOUT_MS;
      const timer = timeoutMs > 0 && Number.isFinite(timeoutMs) ? setTimeout(() => this.expire(id, timeoutMs), timeoutMs) : undefined;
      this.pending.set(id, { op, resolve, reject, timer });
      this.send([REQUEST, id, op, ask]);
    });
  }

  /** Idempotent. Pending calls are settled at once, with ECLOSED. */
  close(why = 'closed here'): void {
    if (this.failure !== undefined) return;
    this.flush();
    this.finish(new SessionFailure('closed', 'ECLOSED', `session: ${why}`));
    this.socket.close(1000, why.slice(0, 120));
    setTimeout(() => this.socket.terminate(), CLOSE_GRACE_MS).unref();
  }

  /** Ends the session without a word: the peer is not to be waited for. */
  terminate(why: string): void {
    this.finish(new SessionFailure('closed', 'EIO', `session: ${why}`));
    this.socket.terminate();
  }

  private receive(data: RawData, isBinary: boolean): void {
    if (this.failure !== undefined) return;
    this.lastReceivedAt = Date.now();
    const frames = isBinary ? decodeFrames(data) : undefined;
    if (frames === undefined) {
      const error = new ExtmemError('EPROTO', 'the peer sent something that is no frame of this protocol; the session ends');
      this.options.onError?.(error);
      return this.terminate(error.message);
    }
    for (const frame of frames) this.take(frame);
  }

  private take([kind, id, third, fourth]: Frame): void {
    if (this.failure !== undefined) return;
    if (kind === REQUEST) {
      if (this.answeredThisTurn) this.deferred.push([id, String(third), fourth]);
      else this.dispatch(id, String(third), fourth);
      return;
    }
    if (!this.answeredThisTurn) {
      this.answeredThisTurn = true;
      setImmediate(() => this.dispatchDeferred());
    }
    if (kind === ANSWER) this.settle(id, third);
    else this.fail(id, String(third), String(fourth));
  }

  private dispatchDeferred(): void {
    this.answeredThisTurn = false;
    const deferred = this.deferred;
    this.deferred = [];
    for (const [id, op, ask] of deferred) this.dispatch(id, op, ask);
  }

  private dispatch(id: number, op: string, ask: unknown): void {
    if (this.failure !== undefined) return;
    const table = Object.hasOwn(this.tables.in, op) ? this.tables.in[op] : undefined;
    if (table === undefined) return this.send([FAILURE, id, 'ENOSYS', `no such operation: ${op.slice(0, 64)}`]);
    const wrong = explain(table.ask, ask);
    if (wrong !== undefined) return this.send([FAILURE, id, 'EINVAL', `${op}: ${wrong}`]);
    if (this.handling >= MAX_IN_FLIGHT) return this.send([FAILURE, id, 'EBUSY', `${op}: ${MAX_IN_FLIGHT} requests are under way already`]);
    const handler = this.handlers[op] as (ask: unknown) => unknown;
    this.handling++;
    let answer: unknown;
    try {
      answer = handler(ask);
    } catch (error) {
      this.handling--;
      return this.sendFailure(id, op, error);
    }
    if (!(answer instanceof Promise)) {
      this.handling--;
      return this.sendAnswer(id, op, table.answer, answer);
    }
    answer.then(
      (value: unknown) => {
        this.handling--;
        this.sendAnswer(id, op, table.answer, value);
      },
      (error: unknown) => {
        this.handling--;
        this.sendFailure(id, op, error);
      },
    );
  }

  private sendAnswer(id: number, op: string, schema: TSchema, answer: unknown): void {
    const wrong = explain(schema, answer);
    if (wrong === undefined) return this.send([ANSWER, id, answer]);
    this.sendFailure(id, op, new Error(`the answer to ${op} is not what the protocol says: ${wrong}`));
  }

  private sendFailure(id: number, op: string, error: unknown): void {
    if (error instanceof ExtmemError) return this.send([FAILURE, id, error.code, error.message]);
    const unexpected = error instanceof Error ? error : new Error(String(error));
    this.options.onError?.(unexpected);
    this.send([FAILURE, id, 'EIO', `${op}: internal error: ${unexpected.message}`]);
  }

  private send(frame: unknown[]): void {
    if (this.failure !== undefined) return;
    const bytes = packr.pack(frame);
    if (bytes.length > MAX_FRAME_BYTES) {
      if (frame[0] === REQUEST)
        return this.fail(frame[1] as number, 'EMSGSIZE', `a request of ${bytes.length} bytes is larger than ${MAX_FRAME_BYTES}`);
      return this.send([FAILURE, frame[1], 'EMSGSIZE', `an answer of ${bytes.length} bytes is larger than ${MAX_FRAME_BYTES}`]);
    }
    // After everything that this turn's promises still set off.
    if (this.outgoing.length === 0) queueMicrotask(() => process.nextTick(() => this.flush()));
    this.outgoing.push(bytes);
    this.outgoingBytes += bytes.length;
    if (this.outgoingBytes >= JOINED_BYTES) this.flush();
  }

  private flush(): void {
    const [first] = this.outgoing;
    if (this.failure !== undefined || first === undefined) return;
    const message = this.outgoing.length === 1 ? first : Buffer.concat(this.outgoing, this.outgoingBytes);
    this.outgoing = [];
    this.outgoingBytes = 0;
    this.socket.send(message, { binary: true });
    if (this.socket.bufferedAmount > MAX_UNSENT_BYTES) this.terminate('the peer does not read what it is sent');
  }

  private settle(id: number, value: unknown): void {
    const call = this.takeCall(id);
    if (call === undefined) return;
    const table = this.tables.out[call.op];
    const wrong = table === undefined ? 'unknown operation' : explain(table.answer, value);
    if (wrong === undefined) call.resolve(value);
    else call.reject(new ExtmemError('EPROTO', `the answer to ${call.op} is not what the protocol says: ${wrong}`));
  }

  private fail(id: number, code: string, message: string): void {
    this.takeCall(id)?.reject(new ExtmemError(code, message));
  }

  private expire(id: number, timeoutMs: number): void {
    const call = this.takeCall(id);
    call?.reject(new SessionFailure('timeout', 'EIO', `${call.op}: no answer within ${timeoutMs} ms`));
  }

  private takeCall(id: number): PendingCall | undefined {
    const call = this.pending.get(id);
    if (call === undefined) return undefined;
    this.pending.delete(id);
    clearTimeout(call.timer);
    return call;
  }

  private checkLiveness(): void {
    const now = Date.now();
    // A process that was stopped or starved must first read what has arrived meanwhile before it judges its peer.
    const wasAway = now - this.lastCheckAt > HEARTBEAT_MS;
    this.lastCheckAt = now;
    if (wasAway) this.lastReceivedAt = Math.max(this.lastReceivedAt, now - HEARTBEAT_MS);
    if (now - this.lastReceivedAt >= SILENCE_MS - CHECK_MS)
      return this.terminate(`nothing was heard of the peer for ${now - this.lastReceivedAt} ms`);
    if (this.socket.readyState === WebSocket.OPEN) this.socket.ping();
  }

  private finish(reason: ExtmemError): void {
    if (this.failure !== undefined) return;
    this.failure = reason;
    clearInterval(this.liveness);
    for (const id of [...this.pending.keys()]) this.takeCall(id)?.reject(reason);
    this.deferred = [];
    this.outgoing = [];
    this.ended(reason);
  }
}

export interface ConnectOptions extends SessionOptions {
  /** PEM of the authority that signed the manager's certificate. */
  ca?: string | Buffer;
  timeoutMs?: number;
}

/** Where the manager listens for sessions: `base` is its URL as people write it (http, https, ws, wss, or host:port). */
export function sessionUrl(base: string, role: 'clients' | 'appliances'): string {
  const url = managerUrl(base);
  url.protocol = url.protocol === 'https:' || url.protocol === 'wss:' ? 'wss:' : 'ws:';
  url.pathname = `/v1/${role}/session`;
  return url.toString();
}

/** Opens a session with the manager. `url`: see sessionUrl. Rejects EACCES when the token is refused, else with the socket's code. */
export function connectSession<Out extends Operations, In extends Operations>(
  url: string,
  token: string,
  tables: SessionTables<Out, In>,
  handlers: Handlers<In>,
  options: ConnectOptions = {},
): Promise<Session<Out, In>> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url.replace(/^http/, 'ws'), {
      headers: { authorization: `Bearer ${token}` },
      perMessageDeflate: false,
      maxPayload: MAX_FRAME_BYTES,
      handshakeTimeout: options.timeoutMs ?? CALL_TIMEOUT_MS,
      ...(options.ca === undefined ? {} : { ca: options.ca }),
    });
    const onError = (error: NodeJS.ErrnoException): void =>
      reject(new ExtmemError(error.code ?? 'EIO', `connecting to the manager at ${url}: ${error.message}`));
    socket.once('error', onError);
    socket.once('unexpected-response', (_request, response) => {
      const status = response.statusCode ?? 0;
      socket.on('error', () => undefined);
      socket.terminate();
      if (status === 401)
        reject(new ExtmemError('EACCES', `the manager at ${url} refused the join token; pass the token it was started with`));
      else reject(new ExtmemError('EPROTO', `${url} answered ${status}: is that an extmem manager?`));
    });
    socket.once('open', () => {
      socket.off('error', onError);
      resolve(new Session(socket, tables, handlers, options));
    });
  });
}

/** undefined: the value is what the schema says. */
function explain(schema: TSchema, value: unknown): string | undefined {
  let check = checks.get(schema);
  if (check === undefined) {
    check = TypeCompiler.Compile(schema);
    checks.set(schema, check);
  }
  if (check.Check(value)) return undefined;
  const first = check.Errors(value).First();
  return first === undefined ? 'not valid' : `${first.path === '' ? 'it' : first.path.slice(1)}: ${first.message}`;
}

function decodeFrames(data: RawData): Frame[] | undefined {
  if (!(data instanceof Uint8Array) || data.length === 0) return undefined;
  let frames: unknown;
  try {
    frames = packr.unpackMultiple(data);
  } catch {
    return undefined;
  }
  return Array.isArray(frames) && frames.every(isFrame) ? frames : undefined;
}

function isFrame(frame: unknown): frame is Frame {
  if (!Array.isArray(frame) || frame.length < 3 || frame.length > 4) return false;
  const [kind, id, third] = frame as unknown[];
  if (kind !== REQUEST && kind !== ANSWER && kind !== FAILURE) return false;
  return typeof id === 'number' && (kind === ANSWER || typeof third === 'string');
}
