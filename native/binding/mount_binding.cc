#include "binding/mount_binding.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "base/trace.h"
#include "binding/convert.h"
#include "binding/main_thread.h"
#include "cache/file_control.h"
#include "cache/flusher.h"
#include "cache/reader.h"
#include "cache/renewal.h"
#include "cache/shared_turns.h"
#include "fuse/session.h"

namespace extmem::binding {

namespace {

using cache::Delegation;
using cache::File;
using extent::ControlCall;

Delegation to_mode(const Napi::Value& value) {
  std::string mode = value.As<Napi::String>().Utf8Value();
  return mode == "write" ? Delegation::write : mode == "shared" ? Delegation::shared : Delegation::read;
}

const char* from_mode(Delegation mode) {
  return mode == Delegation::write ? "write" : mode == Delegation::shared ? "shared" : "read";
}

const char* kind_name(ControlCall::Kind kind) {
  switch (kind) {
    case ControlCall::Kind::commit:
      return "commit";
    case ControlCall::Kind::provision:
      return "provision";
    case ControlCall::Kind::extend:
      return "extend";
    case ControlCall::Kind::wrote:
      return "wrote";
    case ControlCall::Kind::claim_end:
      return "claimEnd";
    case ControlCall::Kind::give_up_end:
      return "giveUpEnd";
    case ControlCall::Kind::drop_privileges:
      return "dropPrivileges";
    case ControlCall::Kind::drop_copies:
      return "dropCopies";
  }
  return "";
}

fabric::Credentials to_credentials(const Napi::Object& object) {
  fabric::Credentials credentials;
  credentials.client = u64_of(object, "client");
  credentials.client_generation = static_cast<uint32_t>(u64_of(object, "clientGeneration"));
  auto key = to_bytes(object.Get("clientKey"));
  EXTMEM_ASSERT(key.size() == credentials.key.size());
  std::copy(key.begin(), key.end(), credentials.key.begin());
  return credentials;
}

fuse::Session::Options to_options(const Napi::Object& object) {
  fuse::Session::Options options;
  options.mount_point = string_of(object, "mountPoint");
  options.threads = static_cast<unsigned>(u64_of(object, "threads"));
  std::string uring = string_of(object, "ioUring");
  options.uring = uring == "on"     ? fuse::UringUse::always
                  : uring == "auto" ? fuse::UringUse::automatic
                                    : fuse::UringUse::never;
  options.memory_limit_bytes = u64_of(object, "memoryLimitBytes");
  options.cache.cache_bytes = u64_of(object, "cacheBytes");
  options.cache.dirty_bytes = u64_of(object, "dirtyBytes");
  options.cache.appliance_dirty_bytes = u64_of(object, "applianceDirtyBytes");
  options.cache.pinned_bytes = u64_of(object, "pinLimitBytes");
  options.cache.read_ahead_pages = static_cast<uint32_t>(u64_of(object, "readAheadBytes") / cache::kPageBytes);
  uint64_t reference_log_fd = u64_of(object, "referenceLogFd");
  if (reference_log_fd != 0) options.cache.reference_log_fd = static_cast<int>(reference_log_fd);
  auto& fabric = options.fabric;
  fabric.credentials = to_credentials(object);
  std::string transport = string_of(object, "transport");
  fabric.transport = transport == "shm"     ? fabric::TransportKind::shm
                     : transport == "tcp"   ? fabric::TransportKind::tcp
                     : transport == "verbs" ? fabric::TransportKind::verbs
                                            : fabric::TransportKind::automatic;
  fabric.host_id = string_of(object, "hostId");
  fabric.operation_deadline_ms = u64_of(object, "deadlineMs");
  fabric.fault_seed = u64_of(object, "faultSeed");
  fabric.fault_plan = string_of(object, "faultPlan");
  return options;
}

class Mount final : public Napi::ObjectWrap<Mount>, public extent::ControlPlane, public fuse::ControlSink {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Mount",
                       {InstanceMethod<&Mount::start>("start"),
                        InstanceMethod<&Mount::reply>("reply"),
                        InstanceMethod<&Mount::answer>("answer"),
                        InstanceMethod<&Mount::rejoin>("rejoin"),
                        InstanceMethod<&Mount::put_appliance>("putAppliance"),
                        InstanceMethod<&Mount::put_region>("putRegion"),
                        InstanceMethod<&Mount::lose_regions>("loseRegions"),
                        InstanceMethod<&Mount::add_provision>("addProvision"),
                        InstanceMethod<&Mount::remove_provision>("removeProvision"),
                        InstanceMethod<&Mount::free_slabs>("freeSlabs"),
                        InstanceMethod<&Mount::put_file>("putFile"),
                        InstanceMethod<&Mount::file_state>("fileState"),
                        InstanceMethod<&Mount::record>("record"),
                        InstanceMethod<&Mount::set_times>("setTimes"),
                        InstanceMethod<&Mount::set_size>("setSize"),
                        InstanceMethod<&Mount::set_locked>("setLocked"),
                        InstanceMethod<&Mount::set_privileged>("setPrivileged"),
                        InstanceMethod<&Mount::set_own_regions>("setOwnRegions"),
                        InstanceMethod<&Mount::set_unannounced>("setUnannounced"),
                        InstanceMethod<&Mount::open_handle>("openHandle"),
                        InstanceMethod<&Mount::close_handle>("closeHandle"),
                        InstanceMethod<&Mount::handle_errno>("handleErrno"),
                        InstanceMethod<&Mount::flush_file>("flushFile"),
                        InstanceMethod<&Mount::begin_cut>("beginCut"),
                        InstanceMethod<&Mount::end_cut>("endCut"),
                        InstanceMethod<&Mount::pause_writers>("pauseWriters"),
                        InstanceMethod<&Mount::resume_writers>("resumeWriters"),
                        InstanceMethod<&Mount::refuse_writers>("refuseWriters"),
                        InstanceMethod<&Mount::reads_settled>("readsSettled"),
                        InstanceMethod<&Mount::yield_end>("yieldEnd"),
                        InstanceMethod<&Mount::drop_pages>("dropPages"),
                        InstanceMethod<&Mount::drop_file>("dropFile"),
                        InstanceMethod<&Mount::warm_file>("warmFile"),
                        InstanceMethod<&Mount::set_pinned>("setPinned"),
                        InstanceMethod<&Mount::residency>("residency"),
                        InstanceMethod<&Mount::forget_kernel_pages>("forgetKernelPages"),
                        InstanceMethod<&Mount::settle_void>("settleVoid"),
                        InstanceMethod<&Mount::renew_file>("renewFile"),
                        InstanceMethod<&Mount::break_handles>("breakHandles"),
                        InstanceMethod<&Mount::admit_mapped>("admitMapped"),
                        InstanceMethod<&Mount::invalidate_inode>("invalidateInode"),
                        InstanceMethod<&Mount::invalidate_entry>("invalidateEntry"),
                        InstanceMethod<&Mount::watch_operations>("watchOperations"),
                        InstanceMethod<&Mount::take_operations>("takeOperations"),
                        InstanceMethod<&Mount::statistics>("statistics"),
                        InstanceMethod<&Mount::take_trace>("takeTrace"),
                        InstanceMethod<&Mount::unmount>("unmount"),
                        InstanceMethod<&Mount::close>("close")});
  }

  explicit Mount(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<Mount>(info),
        main_thread_(info.Env(), "extmem mount"),
        upcall_(Napi::Persistent(info[1].As<Napi::Function>())) {
    auto object = info[0].As<Napi::Object>();
    trace::enabled.store(bool_of(object, "trace"));
    session_ = std::make_unique<fuse::Session>(to_options(object), *this, *this);
  }
  ~Mount() override { shut_down(); }

  // extent::ControlPlane, on reactors.
  void ask(ControlCall& call) override {
    uint64_t id;
    {
      std::lock_guard guard(calls_lock_);
      if (closing_ || call.life() != life()) {
        call.error = EIO;
        call.answered();
        return;
      }
      id = next_call_++;
      calls_.emplace(id, &call);
    }
    // A copy: should everything be shut down meanwhile, the call is answered and its frame gone before the job runs.
    Question question{call.kind,       call.node,    call.offset,      call.bytes,  call.mtime_ns,
                      call.lock_owner, call.closing, call.holds_pages, call.record, call.places};
    main_thread_.run([this, id, question](Napi::Env env) { up_question(env, id, question); });
  }

  // fuse::ControlSink, on reactors.
  void control_request(fuse::ControlRequest request) override {
    auto shared = std::make_shared<fuse::ControlRequest>(std::move(request));
    main_thread_.run([this, shared](Napi::Env env) {
      Napi::Object call = upcall(env, "request");
      call.Set("id", from_u64(env, shared->id));
      call.Set("unique", from_u64(env, shared->unique));
      call.Set("opcode", from_u64(env, shared->opcode));
      call.Set("node", from_u64(env, shared->node));
      call.Set("uid", from_u64(env, shared->uid));
      call.Set("gid", from_u64(env, shared->gid));
      call.Set("pid", from_u64(env, shared->pid));
      call.Set("body", from_bytes(env, shared->body));
      emit(call);
    });
  }
  void interrupted(uint64_t unique) override {
    main_thread_.run([this, unique](Napi::Env env) {
      Napi::Object call = upcall(env, "interrupt");
      call.Set("unique", from_u64(env, unique));
      emit(call);
    });
  }
  void forgotten(std::vector<std::pair<uint64_t, uint64_t>> nodes) override {
    main_thread_.run([this, nodes = std::move(nodes)](Napi::Env env) {
      Napi::Object call = upcall(env, "forget");
      Napi::Array list = Napi::Array::New(env, nodes.size());
      for (uint32_t index = 0; index < nodes.size(); ++index) {
        Napi::Object one = Napi::Object::New(env);
        one.Set("node", from_u64(env, nodes[index].first));
        one.Set("count", from_u64(env, nodes[index].second));
        list.Set(index, one);
      }
      call.Set("nodes", list);
      emit(call);
    });
  }
  void session_ended(int error) override {
    main_thread_.run([this, error](Napi::Env env) {
      Napi::Object call = upcall(env, "ended");
      call.Set("errno", Napi::Number::New(env, error));
      emit(call);
    });
  }

 private:
  struct Question {
    ControlCall::Kind kind;
    uint64_t node, offset, bytes, mtime_ns, lock_owner;
    bool closing, holds_pages;
    std::vector<uint8_t> record;
    std::vector<ControlCall::Place> places;
  };

  Napi::Object upcall(Napi::Env env, const char* kind) {
    Napi::Object call = Napi::Object::New(env);
    call.Set("kind", Napi::String::New(env, kind));
    return call;
  }

  void emit(const Napi::Object& call) {
    if (!closed_) upcall_.Call({call});
  }

  void up_question(Napi::Env env, uint64_t id, const Question& question) {
    {
      std::lock_guard guard(calls_lock_);
      if (!calls_.contains(id)) return;  // it was asked by the client that we were
    }
    Napi::Object call = upcall(env, kind_name(question.kind));
    call.Set("id", from_u64(env, id));
    call.Set("node", from_u64(env, question.node));
    call.Set("offset", from_u64(env, question.offset));
    call.Set("length", from_u64(env, question.bytes));
    call.Set("bytes", from_u64(env, question.bytes));
    call.Set("mtimeSec", from_u64(env, question.mtime_ns / 1'000'000'000));
    call.Set("mtimeNsec", from_u64(env, question.mtime_ns % 1'000'000'000));
    call.Set("holdsPages", Napi::Boolean::New(env, question.holds_pages));
    call.Set("record", from_bytes(env, question.record));
    Napi::Array places = Napi::Array::New(env, question.places.size());
    for (uint32_t index = 0; index < question.places.size(); ++index) {
      Napi::Object place = Napi::Object::New(env);
      place.Set("region", from_u64(env, question.places[index].region));
      place.Set("offset", from_u64(env, question.places[index].offset));
      places.Set(index, place);
    }
    call.Set("places", places);
    char owner[24] = "";
    if (question.closing) std::snprintf(owner, sizeof owner, "%016lx", question.lock_owner);
    call.Set("owner", Napi::String::New(env, owner));
    emit(call);
  }

  fuse::Session& session(Napi::Env env) {
    if (closed_) throw coded_error(env, "ECLOSED", "the mount is closed");
    return *session_;
  }

  /// A file by node, held until the end of the scope.
  class FileGuard {
   public:
    FileGuard(cache::PageCache& cache, uint64_t node) : cache_(cache), file_(cache.find_file(node)) {}
    FileGuard(const FileGuard&) = delete;
    FileGuard& operator=(const FileGuard&) = delete;
    ~FileGuard() {
      if (file_ != nullptr) cache_.put_file(*file_);
    }
    File* operator->() const { return file_; }
    File& operator*() const { return *file_; }
    explicit operator bool() const { return file_ != nullptr; }

   private:
    cache::PageCache& cache_;
    File* file_;
  };

  /// Runs a coroutine on the file's worker; the promise settles with its errno.
  template <typename Make>
  Napi::Value run_for_file(const Napi::CallbackInfo& info, const char* what, Make make) {
    Napi::Env env = info.Env();
    auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
    auto& cache = session(env).cache();
    uint64_t node = to_u64(info[0]);
    File* file = cache.find_file(node);
    if (file == nullptr) {
      deferred->Reject(errno_error(env, ENOENT, what).Value());
      return deferred->Promise();
    }
    auto settle = [this, deferred, what](int error) {
      main_thread_.run([deferred, error, what](Napi::Env env) {
        if (error == 0) {
          deferred->Resolve(env.Undefined());
        } else {
          deferred->Reject(errno_error(env, error, what).Value());
        }
      });
    };
    session_->run_on_worker(
        node, [&cache, file, make, settle](fuse::Worker& worker) { drive(cache, worker.lane(), *file, make, settle); });
    return deferred->Promise();
  }

  template <typename Make, typename Settle>
  static Detached drive(cache::PageCache& cache, cache::Lane& lane, File& file, Make make, Settle settle) {
    int error = co_await make(cache, lane, file);
    cache.put_file(file);
    settle(error);
  }

  Napi::Value start(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    fuse::MountResult result = session(env).start();
    if (result.fd < 0) throw coded_error(env, result.code, result.message);
    Napi::Object started = Napi::Object::New(env);
    started.Set("session", Napi::String::New(env, session_->kind()));
    started.Set("ioUringRefused", Napi::String::New(env, session_->uring_refused()));
    started.Set("mapsDirect", Napi::Boolean::New(env, session_->kernel_maps_direct()));
    return started;
  }

  void reply(const Napi::CallbackInfo& info) {
    int error = info[1].As<Napi::Number>().Int32Value();
    std::span<const uint8_t> body;
    if (info[2].IsTypedArray()) {
      auto array = info[2].As<Napi::Uint8Array>();
      body = {array.Data(), array.ByteLength()};
    }
    if (!closed_) session_->reply(to_u64(info[0]), error, body);
  }

  void answer(const Napi::CallbackInfo& info) {
    ControlCall* call = take_call(to_u64(info[0]));
    if (call == nullptr) return;
    call->error = info[1].As<Napi::Number>().Int32Value();
    if (info[2].IsTypedArray()) call->record = to_bytes(info[2]);
    call->answered();
  }

  ControlCall* take_call(uint64_t id) {
    std::lock_guard guard(calls_lock_);
    auto found = calls_.find(id);
    if (found == calls_.end()) return nullptr;
    ControlCall* call = found->second;
    calls_.erase(found);
    return call;
  }

  Napi::Value rejoin(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
    auto credentials = to_credentials(info[0].As<Napi::Object>());
    auto& session = this->session(env);
    // What fails from here on waits for what the files are now; the session's last reactor to rejoin ends that.
    session.directory().fenced.store(true, std::memory_order_release);
    {
      std::lock_guard guard(calls_lock_);
      life_.fetch_add(1);
      answer_all();
    }
    session.rejoin(credentials, [this, deferred] {
      main_thread_.run([deferred](Napi::Env env) { deferred->Resolve(env.Undefined()); });
    });
    return deferred->Promise();
  }

  void put_appliance(const Napi::CallbackInfo& info) {
    auto object = info[0].As<Napi::Object>();
    auto list = object.Get("moreEndpoints").As<Napi::Array>();
    std::vector<fabric::Endpoint> more;
    for (uint32_t index = 0; index < list.Length(); ++index) {
      auto endpoint = list.Get(index).As<Napi::Object>();
      more.push_back(
          {.address = string_of(endpoint, "address"), .port = static_cast<uint16_t>(u64_of(endpoint, "port"))});
    }
    session(info.Env())
        .directory()
        .put_appliance(string_of(object, "id"), string_of(object, "hostId"), string_of(object, "address"),
                       static_cast<uint16_t>(u64_of(object, "port")), string_of(object, "linkName"),
                       u64_of(object, "incarnation"), object.Get("verbs").ToBoolean(), more, string_of(object, "rack"));
  }

  void put_region(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto object = info[0].As<Napi::Object>();
    auto& directory = session(env).directory();
    fabric::Appliance* appliance = directory.find_appliance(string_of(object, "appliance"));
    if (appliance == nullptr) throw errno_error(env, ENOENT, "a region of an unknown appliance");
    auto bytes = to_bytes(object.Get("capability"));
    protocol::Capability capability{};
    EXTMEM_ASSERT(bytes.size() == sizeof capability);
    std::memcpy(&capability, bytes.data(), sizeof capability);
    directory.put_region(u64_of(object, "region"), u64_of(object, "bytes"), *appliance, capability);
  }

  void lose_regions(const Napi::CallbackInfo& info) {
    auto list = info[0].As<Napi::Array>();
    auto& session = this->session(info.Env());
    for (uint32_t index = 0; index < list.Length(); ++index) {
      uint64_t region = to_u64(list.Get(index));
      session.directory().lose_region(region);
      session.cache().slabs().remove_region(region);
    }
  }

  void add_provision(const Napi::CallbackInfo& info) {
    auto& session = this->session(info.Env());
    fabric::Region* region = session.directory().find_region(to_u64(info[0]));
    if (region == nullptr) throw errno_error(info.Env(), ENOENT, "a provision of an unknown region");
    std::vector<std::pair<uint64_t, uint64_t>> used;
    auto list = info[1].As<Napi::Array>();
    for (uint32_t index = 0; index < list.Length(); ++index) {
      auto pair = list.Get(index).As<Napi::Array>();
      used.emplace_back(to_u64(pair.Get(0u)), to_u64(pair.Get(1u)));
    }
    session.cache().slabs().add_region(*region, used);
  }

  void remove_provision(const Napi::CallbackInfo& info) {
    session(info.Env()).cache().slabs().remove_region(to_u64(info[0]));
  }

  void free_slabs(const Napi::CallbackInfo& info) {
    auto list = info[0].As<Napi::Array>();
    for (uint32_t index = 0; index < list.Length(); ++index) {
      auto piece = list.Get(index).As<Napi::Object>();
      session(info.Env())
          .cache()
          .slabs()
          .free(u64_of(piece, "region"), u64_of(piece, "offset"), u64_of(piece, "length"));
    }
  }

  void put_file(const Napi::CallbackInfo& info) {
    auto record = to_bytes(info[2]);
    int error = cache::install_file(session(info.Env()).cache(), to_u64(info[0]), to_mode(info[1]), record);
    if (error != 0)
      throw errno_error(info.Env(), error, "the record of file " + std::to_string(to_u64(info[0])) + " is not sound");
  }

  Napi::Value file_state(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    FileGuard file(session(env).cache(), to_u64(info[0]));
    if (!file) return env.Undefined();
    Napi::Object state = Napi::Object::New(env);
    file->lock.lock();
    auto attributes = file->attributes;
    uint64_t allocated = file->extents.allocated_bytes();
    bool changed = attributes.change != file->committed_change;
    uint64_t unwritten = uint64_t{file->dirty_pages.load()} + file->writing_pages;
    file->lock.unlock();
    state.Set("mode", Napi::String::New(env, from_mode(file->mode.load())));
    state.Set("size", from_u64(env, file->size.load()));
    state.Set("blocks", from_u64(env, allocated / 512));
    state.Set("mtime", from_time(env, attributes.mtime_ns));
    state.Set("ctime", from_time(env, attributes.ctime_ns));
    state.Set("change", from_u64(env, attributes.change));
    state.Set("dirtyBytes", from_u64(env, unwritten * cache::kPageBytes));
    state.Set("handles", from_u64(env, file->handles.load()));
    state.Set("recordChanged", Napi::Boolean::New(env, changed));
    return state;
  }

  Napi::Value record(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (!file) throw errno_error(info.Env(), ENOENT, "the record of an unknown file");
    auto bytes = cache::record_of(*file);
    if (info[1].ToBoolean()) {
      file->lock.lock();
      file->committed_change = file->attributes.change;
      file->lock.unlock();
    }
    return from_bytes(info.Env(), bytes);
  }

  void set_times(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (!file) return;
    file->lock.lock();
    if (info[1].IsArray()) file->attributes.mtime_ns = to_time(info[1]);
    if (info[2].IsArray()) file->attributes.ctime_ns = to_time(info[2]);
    ++file->attributes.change;
    file->lock.unlock();
  }

  void set_size(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) cache::grow_shared_size(*file, to_u64(info[1]));
  }

  void set_locked(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) file->locked.store(info[1].ToBoolean());
  }

  void set_privileged(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) file->privileged.store(info[1].ToBoolean());
  }

  void set_own_regions(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) file->own_regions.store(info[1].ToBoolean());
  }

  void set_unannounced(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) file->unannounced.store(info[1].ToBoolean());
  }

  Napi::Value open_handle(const Napi::CallbackInfo& info) {
    File* file = session(info.Env()).cache().find_file(to_u64(info[0]));
    if (file == nullptr) throw errno_error(info.Env(), ENOENT, "opening an unknown file");
    file->handles.fetch_add(1);
    auto& pages = session_->kernel_pages();
    auto kernel = info[2].As<Napi::Object>();
    // Opened without keep_cache: the kernel drops what it had.
    if (!kernel.Get("keepsPages").ToBoolean()) pages.settle(pages.take(file->node, 0, UINT32_MAX));
    auto* handle = new cache::Handle{.file = file,
                                     .flags = static_cast<uint32_t>(to_u64(info[1])),
                                     .seen_errors = file->error_sequence.load(),
                                     .life = file->life.load(),
                                     .direct = kernel.Get("direct").ToBoolean(),
                                     .kernel = pages.file(file->node)};
    return from_u64(info.Env(), reinterpret_cast<uint64_t>(handle));
  }

  void close_handle(const Napi::CallbackInfo& info) {
    auto* handle = reinterpret_cast<cache::Handle*>(to_u64(info[0]));
    handle->file->handles.fetch_sub(1);
    session(info.Env()).cache().put_file(*handle->file);
    delete handle;
  }

  Napi::Value handle_errno(const Napi::CallbackInfo& info) {
    auto* handle = reinterpret_cast<cache::Handle*>(to_u64(info[0]));
    return Napi::Number::New(info.Env(), handle->broken() ? handle->file->broken_errno.load() : 0);
  }

  Napi::Value flush_file(const Napi::CallbackInfo& info) {
    return run_for_file(info, "writing back", [](cache::PageCache& cache, cache::Lane& lane, File& file) {
      return cache::flush_settled(cache, lane, file);
    });
  }

  Napi::Value begin_cut(const Napi::CallbackInfo& info) {
    uint64_t offset = to_u64(info[1]);
    int64_t length = info[2].As<Napi::Number>().Int64Value();
    uint64_t end = length < 0 ? UINT64_MAX : offset + static_cast<uint64_t>(length);
    return run_for_file(info, "cutting", [offset, end](cache::PageCache& cache, cache::Lane& lane, File& file) {
      return cache::begin_cut(cache, lane, file, offset, end);
    });
  }

  Napi::Value end_cut(const Napi::CallbackInfo& info) {
    auto record = std::make_shared<std::vector<uint8_t>>(to_bytes(info[1]));
    bool edges_zeroed = info[2].ToBoolean();
    return run_for_file(info, "cutting",
                        [record, edges_zeroed](cache::PageCache& cache, cache::Lane& lane, File& file) {
                          return cache::end_cut(cache, lane, file, *record, edges_zeroed);
                        });
  }

  Napi::Value pause_writers(const Napi::CallbackInfo& info) {
    return run_for_file(info, "pausing writers", [](cache::PageCache&, cache::Lane& lane, File& file) {
      return cache::pause_writers(lane, file);
    });
  }

  void resume_writers(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) cache::resume_writers(*file);
  }

  void refuse_writers(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) cache::refuse_writers(*file);
  }

  Napi::Value reads_settled(const Napi::CallbackInfo& info) {
    return run_for_file(info, "waiting for reads", [](cache::PageCache&, cache::Lane& lane, File& file) {
      return cache::reads_settled(lane, file);
    });
  }

  Napi::Value yield_end(const Napi::CallbackInfo& info) {
    return run_for_file(info, "yielding the end",
                        [](cache::PageCache&, cache::Lane& lane, File& file) { return cache::yield_end(lane, file); });
  }

  Napi::Value drop_pages(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (!file) return from_u64(info.Env(), 0);
    uint64_t offset = to_u64(info[1]);
    int64_t length = info[2].As<Napi::Number>().Int64Value();
    uint32_t last = length < 0 ? UINT32_MAX : cache::page_of(offset + static_cast<uint64_t>(length));
    uint32_t dropped = session_->cache().drop_clean(*file, cache::page_of(offset), last);
    return from_u64(info.Env(), dropped * cache::kPageBytes);
  }

  void drop_file(const Napi::CallbackInfo& info) { session(info.Env()).cache().forget_file(to_u64(info[0])); }

  Napi::Value warm_file(const Napi::CallbackInfo& info) {
    uint64_t offset = to_u64(info[1]);
    uint64_t bytes = to_u64(info[2]);
    return run_for_file(info, "warming", [offset, bytes](cache::PageCache& cache, cache::Lane& lane, File& file) {
      return cache::warm_range(cache, lane, file, offset, bytes);
    });
  }

  void set_pinned(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (!file) throw errno_error(info.Env(), ENOENT, "pinning an unknown file");
    session_->cache().set_pinned(*file, info[1].ToBoolean());
  }

  Napi::Value residency(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    cache::PageCache::Residency found;
    if (file) found = session_->cache().residency_of(*file);
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("cachedBytes", from_u64(info.Env(), found.cached_bytes));
    object.Set("pinnedBytes", from_u64(info.Env(), found.pinned_bytes));
    return object;
  }

  void forget_kernel_pages(const Napi::CallbackInfo& info) {
    session(info.Env()).kernel_pages().forget(to_u64(info[0]));
  }

  Napi::Value settle_void(const Napi::CallbackInfo& info) {
    return run_for_file(info, "giving up", [](cache::PageCache& cache, cache::Lane& lane, File& file) {
      return cache::settle_void(cache, lane, file);
    });
  }

  void renew_file(const Napi::CallbackInfo& info) {
    auto& cache = session(info.Env()).cache();
    FileGuard file(cache, to_u64(info[0]));
    int error = file ? cache::renew_file(cache, *file, to_mode(info[1]), to_bytes(info[2])) : ENOENT;
    if (error != 0)
      throw errno_error(info.Env(), error, "the record of file " + std::to_string(to_u64(info[0])) + " is not sound");
  }

  void break_handles(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) cache::break_handles(*file, info[1].As<Napi::Number>().Int32Value());
  }

  void admit_mapped(const Napi::CallbackInfo& info) {
    FileGuard file(session(info.Env()).cache(), to_u64(info[0]));
    if (file) file->refuses_mapped.store(false);
  }

  Napi::Value invalidate_inode(const Napi::CallbackInfo& info) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(info.Env());
    session(info.Env())
        .invalidate_inode(to_u64(info[0]), info[1].As<Napi::Number>().Int64Value(),
                          std::max<int64_t>(info[2].As<Napi::Number>().Int64Value(), 0), settle_later(deferred));
    return deferred->Promise();
  }

  Napi::Value invalidate_entry(const Napi::CallbackInfo& info) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(info.Env());
    session(info.Env())
        .notifier()
        .invalidate_entry(to_u64(info[0]), info[1].As<Napi::String>().Utf8Value(), settle_later(deferred));
    return deferred->Promise();
  }

  fuse::Notifier::Done settle_later(std::shared_ptr<Napi::Promise::Deferred> deferred) {
    return [this, deferred](int error) {
      main_thread_.run([deferred, error](Napi::Env env) {
        if (error == 0 || error == ENODEV || error == ENOTCONN) {
          deferred->Resolve(env.Undefined());
        } else {
          deferred->Reject(errno_error(env, error, "invalidating the kernel's caches").Value());
        }
      });
    };
  }

  void watch_operations(const Napi::CallbackInfo& info) { session(info.Env()).watch_operations(info[0].ToBoolean()); }

  Napi::Value take_operations(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    std::vector<cache::FileOperations> files;
    const uint64_t others = session(env).take_operations(files);
    Napi::Array list = Napi::Array::New(env, files.size());
    for (uint32_t index = 0; index < files.size(); ++index) {
      const cache::FileOperations& file = files[index];
      Napi::Object one = Napi::Object::New(env);
      one.Set("ino", from_u64(env, file.node));
      one.Set("reads", from_u64(env, file.reads));
      one.Set("readBytes", from_u64(env, file.read_bytes));
      one.Set("hits", from_u64(env, file.hits));
      one.Set("writes", from_u64(env, file.writes));
      one.Set("writtenBytes", from_u64(env, file.written_bytes));
      one.Set("mappedWrites", from_u64(env, file.mapped_writes));
      Napi::Array hot = Napi::Array::New(env);
      for (const auto& [chunk, operations] : file.hot) {
        if (operations == 0) continue;
        Napi::Object warm = Napi::Object::New(env);
        warm.Set("offset", from_u64(env, chunk * protocol::kStripeUnitBytes));
        warm.Set("operations", from_u64(env, operations));
        hot.Set(hot.Length(), warm);
      }
      one.Set("hot", hot);
      list.Set(index, one);
    }
    Napi::Object object = Napi::Object::New(env);
    object.Set("files", list);
    object.Set("otherOperations", from_u64(env, others));
    return object;
  }

  Napi::Value statistics(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Napi::Object object = Napi::Object::New(env);
    for (auto& [name, value] : session(env).statistics()) set_dotted(object, name, Napi::Number::New(env, value));
    Napi::Object fabric = Napi::Object::New(env);
    for (fabric::Appliance* appliance : session_->directory().appliances()) {
      fabric.Set(appliance->id, appliance_statistics(env, *appliance));
    }
    object.Set("fabric", fabric);
    object.Get("fuse").As<Napi::Object>().Set("session", Napi::String::New(env, session_->kind()));
    return object;
  }

  static constexpr const char* kTransports[] = {"none", "shm", "tcp", "verbs", "sim"};

  static Napi::Object appliance_statistics(Napi::Env env, fabric::Appliance& appliance) {
    static constexpr const char* kStates[] = {"idle", "connecting", "up", "down"};
    Napi::Object row = Napi::Object::New(env);
    const auto links = appliance.sum_statistics();
    row.Set("state", Napi::String::New(env, kStates[static_cast<size_t>(appliance.state.load())]));
    row.Set("transport", Napi::String::New(env, kTransports[static_cast<size_t>(appliance.transport.load())]));
    row.Set("dirtyBytes", from_u64(env, appliance.dirty_bytes));
    row.Set("breakerOpenings", from_u64(env, appliance.breaker_openings));
    Napi::Array list = Napi::Array::New(env);
    fabric::LinkTotals all;
    for (const auto& link : links) {
      all += link;
      list.Set(list.Length(), link_statistics(env, link));
    }
    set_totals(row, all);
    row.Set("links", list);
    return row;
  }

  static Napi::Object link_statistics(Napi::Env env, const fabric::LinkTotals& link) {
    Napi::Object row = Napi::Object::New(env);
    row.Set("transport", Napi::String::New(env, kTransports[static_cast<size_t>(link.transport)]));
    row.Set("address", Napi::String::New(env, link.address));
    set_totals(row, link);
    return row;
  }

  static void set_totals(Napi::Object& row, const fabric::LinkTotals& totals) {
    const auto set = [&row](const char* name, uint64_t value) { row.Set(name, from_u64(row.Env(), value)); };
    set("operations", totals.operations);
    set("bytesRead", totals.bytes_read);
    set("bytesWritten", totals.bytes_written);
    set("failures", totals.failures);
    set("refused", totals.refused);
    set("retries", totals.retries);
    set("connects", totals.connects);
    set("losses", totals.losses);
    set("connections", totals.connections);
    set("latencyNs", totals.latency_ns);
    Napi::Array latency = Napi::Array::New(row.Env(), totals.latency.size());
    for (uint32_t bucket = 0; bucket < totals.latency.size(); ++bucket)
      latency.Set(bucket, from_u64(row.Env(), totals.latency[bucket]));
    row.Set("latencyLog2Ns", latency);
  }

  Napi::Value take_trace(const Napi::CallbackInfo& info) { return from_trace(info.Env()); }

  void unmount(const Napi::CallbackInfo& info) {
    auto& session = this->session(info.Env());
    int error = fuse::unmount_fuse(session.options().mount_point, info[0].ToBoolean());
    if (error != 0 && error != EINVAL)
      throw errno_error(info.Env(), error, "unmounting " + session.options().mount_point);
  }

  void close(const Napi::CallbackInfo&) { shut_down(); }

  void shut_down() {
    if (closed_) return;
    closed_ = true;
    {
      std::lock_guard guard(calls_lock_);
      closing_ = true;
      answer_all();
    }
    session_->stop();
    main_thread_.close();
  }

  /// calls_lock_ is held.
  void answer_all() {
    for (auto& [id, call] : calls_) {
      call->error = EIO;
      call->answered();
    }
    calls_.clear();
  }

  MainThread main_thread_;
  Napi::FunctionReference upcall_;
  std::unique_ptr<fuse::Session> session_;
  bool closed_ = false;    // JavaScript thread only
  std::mutex calls_lock_;  // guards the three below, and growth of life_
  bool closing_ = false;
  uint64_t next_call_ = 1;
  std::unordered_map<uint64_t, ControlCall*> calls_;
};

}  // namespace

Napi::Function define_mount(Napi::Env env) { return Mount::define(env); }

}  // namespace extmem::binding
