/**
 * Jobs that move memory, over HTTP: they are asked for, looked at, and cancelled. A job is answered at once, and goes on by itself.
 */
import { Type, type Static } from '@sinclair/typebox';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { ExtmemError } from '../base/errors.js';
import type { Identity } from './access.js';
import { limits } from './limits.js';
import { JOB_KINDS, JOB_STATES, type Job, type Jobs } from './moves/jobs.js';
import type { Parts } from './parts.js';

export const ErrorAnswer = Type.Object({ code: Type.String(), message: Type.String() });

const Bytes = Type.Integer({ minimum: 0 });
const JobAnswer = Type.Object({
  id: Type.Integer(),
  kind: Type.Union(JOB_KINDS.map((kind) => Type.Literal(kind))),
  /** Not asked for by anybody. */
  automatic: Type.Boolean(),
  /** None: all there are. */
  files: Type.Array(Type.Object({ ino: Type.Integer(), path: Type.String() })),
  to: Type.Optional(Type.String()),
  from: Type.Optional(Type.String()),
  trust: Type.Optional(Type.String()),
  /** Bytes per second at most; 0: as fast as it goes. */
  rate: Bytes,
  state: Type.Union(JOB_STATES.map((state) => Type.Literal(state))),
  doneBytes: Bytes,
  totalBytes: Bytes,
  problems: Type.Array(Type.Object({ ino: Type.Integer(), path: Type.Optional(Type.String()), why: Type.String() })),
  error: Type.String(),
  /** Milliseconds since the epoch; 0: not yet. */
  startedAt: Type.Integer(),
  endedAt: Type.Integer(),
});
const Paths = Type.Array(Type.String({ minLength: 1 }), { maxItems: limits.pathsPerJob });
const ApplianceId = Type.String({ minLength: 1, maxLength: 64 });
const JobBody = Type.Union([
  Type.Object({
    kind: Type.Literal('migrate'),
    paths: Paths,
    to: ApplianceId,
    /** Only what is there. */
    from: Type.Optional(ApplianceId),
    rate: Type.Optional(Bytes),
  }),
  /** Whether copies are the same. Without paths: of every file that has copies. trust: the appliance whose copies are right. */
  Type.Object({
    kind: Type.Literal('check'),
    paths: Type.Optional(Paths),
    trust: Type.Optional(ApplianceId),
    rate: Type.Optional(Bytes),
  }),
  /** Without paths: every file that has copies. */
  Type.Object({ kind: Type.Literal('rebuild'), paths: Type.Optional(Paths), rate: Type.Optional(Bytes) }),
  /** Nothing new is placed there from now on, also when the job has ended. */
  Type.Object({ kind: Type.Literal('drain'), appliance: ApplianceId, rate: Type.Optional(Bytes) }),
]);
const JobParams = Type.Object({ job: Type.Integer({ minimum: 1 }) });
const ApplianceParams = Type.Object({ appliance: ApplianceId });
interface OneJob {
  Params: Static<typeof JobParams>;
}

export function addJobRoutes(app: FastifyInstance, parts: Parts, identify: (request: FastifyRequest) => Promise<Identity>): void {
  const { jobs, allocations } = parts;
  const failures = { '4xx': ErrorAnswer };
  /** Without the files that whoever asks may know nothing of. */
  const shown = (job: Job, who: Identity): Job => {
    const isShown = ({ ino }: { ino: number }): boolean => allocations.allows(ino, who, 'read-metadata');
    return { ...job, files: job.files.filter(isShown), problems: job.problems.filter(isShown) };
  };
  app.post<{ Body: Static<typeof JobBody> }>(
    '/v1/jobs',
    {
      schema: {
        summary: 'Have memory moved (files to an appliance, copies made whole, all of an appliance away from it), or copies compared',
        body: JobBody,
        response: { 201: JobAnswer, ...failures },
      },
    },
    async (request, reply) => {
      const { body } = request;
      if (body.kind === 'drain') {
        const job = await jobs.add({ kind: 'drain', files: [], rate: body.rate ?? 0, from: body.appliance });
        return reply.code(201).send(job);
      }
      const files = await allocations.filesAt(body.paths ?? [], await identify(request));
      if (body.kind === 'migrate' && files.length === 0) throw new ExtmemError('EINVAL', 'say which files to migrate');
      const places = body.kind === 'migrate' ? { to: body.to, from: body.from } : body.kind === 'check' ? { trust: body.trust } : {};
      const job = await jobs.add({ kind: body.kind, files, rate: body.rate ?? 0, ...places });
      return reply.code(201).send(job);
    },
  );
  app.get(
    '/v1/jobs',
    { schema: { summary: 'Jobs that move memory, newest first', response: { 200: Type.Object({ jobs: Type.Array(JobAnswer) }) } } },
    async (request) => {
      const who = await identify(request);
      return { jobs: jobs.list().map((job) => shown(job, who)) };
    },
  );
  app.get<OneJob>(
    '/v1/jobs/:job',
    { schema: { summary: 'One job', params: JobParams, response: { 200: JobAnswer, ...failures } } },
    async (request) => shown(jobs.get(request.params.job), await identify(request)),
  );
  addDrainRoute(app, jobs);
  app.delete<OneJob>(
    '/v1/jobs/:job',
    {
      schema: {
        summary: 'Cancel a job, after what is being moved right now; what was moved stays where it is',
        params: JobParams,
        response: { 200: JobAnswer, ...failures },
      },
    },
    async (request) => {
      const who = await identify(request);
      const job = jobs.get(request.params.job);
      if (!job.files.every(({ ino }) => allocations.allows(ino, who, 'write-metadata')))
        throw new ExtmemError(
          'EACCES',
          `job ${job.id} is about files whose access parameters do not give ${who.name} the right to move them`,
        );
      return shown(await jobs.cancel(job.id), who);
    },
  );
}

function addDrainRoute(app: FastifyInstance, jobs: Jobs): void {
  const failures = { '4xx': ErrorAnswer };
  app.delete<{ Params: Static<typeof ApplianceParams> }>(
    '/v1/appliances/:appliance/drain',
    {
      schema: {
        summary: 'Place things on an appliance again that was, or is being, drained; what has moved away stays where it is',
        params: ApplianceParams,
        response: { 204: Type.Null(), ...failures },
      },
    },
    async (request, reply) => {
      await jobs.endDrain(request.params.appliance);
      return reply.code(204).send(null);
    },
  );
}
