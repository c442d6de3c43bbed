// class RegionServer of src/binding/index.ts.
#include <errno.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/trace.h"
#include "binding/convert.h"
#include "binding/job_thread.h"
#include "binding/main_thread.h"
#include "binding/mount_binding.h"
#include "move/copier.h"
#include "region/region_server.h"

namespace extmem::binding {

namespace {

int errno_of(region::Status status) {
  switch (status) {
    case region::Status::ok:
      return 0;
    case region::Status::no_space:
      return ENOSPC;
    case region::Status::not_present:
      return ENOENT;
    case region::Status::denied:
      return EACCES;
    default:
      return EINVAL;
  }
}

class RegionServer final : public Napi::ObjectWrap<RegionServer> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "RegionServer",
                       {InstanceAccessor<&RegionServer::ports>("ports"),
                        InstanceAccessor<&RegionServer::serves_verbs>("servesVerbs"),
                        InstanceAccessor<&RegionServer::incarnation>("incarnation"),
                        InstanceMethod<&RegionServer::create_region>("createRegion"),
                        InstanceMethod<&RegionServer::resize_region>("resizeRegion"),
                        InstanceMethod<&RegionServer::destroy_region>("destroyRegion"),
                        InstanceMethod<&RegionServer::punch_region>("punchRegion"),
                        InstanceMethod<&RegionServer::fence_clients>("fenceClients"),
                        InstanceMethod<&RegionServer::set_access>("setAccess"),
                        InstanceMethod<&RegionServer::end_overdue>("endOverdue"),
                        InstanceMethod<&RegionServer::set_link_addresses>("setLinkAddresses"),
                        InstanceMethod<&RegionServer::offer_memory>("offerMemory"),
                        InstanceMethod<&RegionServer::list_regions>("listRegions"),
                        InstanceMethod<&RegionServer::list_records>("listRecords"),
                        InstanceMethod<&RegionServer::remove_record>("removeRecord"),
                        InstanceMethod<&RegionServer::memory>("memory"),
                        InstanceMethod<&RegionServer::counters>("counters"),
                        InstanceMethod<&RegionServer::take_trace>("takeTrace"),
                        InstanceMethod<&RegionServer::restored>("restored"),
                        InstanceMethod<&RegionServer::store_status>("storeStatus"),
                        InstanceMethod<&RegionServer::persist>("persist"),
                        InstanceMethod<&RegionServer::persist_in_background>("persistInBackground"),
                        InstanceMethod<&RegionServer::persist_last>("persistLast"),
                        InstanceMethod<&RegionServer::settle_freed>("settleFreed"),
                        InstanceMethod<&RegionServer::settle_destroyed>("settleDestroyed"),
                        InstanceMethod<&RegionServer::sum_pieces>("sumPieces"),
                        InstanceMethod<&RegionServer::copy_pieces>("copyPieces"),
                        InstanceMethod<&RegionServer::stop_copying>("stopCopying"),
                        InstanceMethod<&RegionServer::close>("close")});
  }

  explicit RegionServer(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<RegionServer>(info), main_thread_(info.Env(), "extmem region server") {
    auto object = info[0].As<Napi::Object>();
    region::RegionServer::Options options;
    options.listen_address = string_of(object, "listenAddress");
    options.port = static_cast<uint16_t>(u64_of(object, "port"));
    auto more = object.Get("morePoints").As<Napi::Array>();
    for (uint32_t index = 0; index < more.Length(); ++index) {
      auto point = more.Get(index).As<Napi::Object>();
      options.more_points.push_back(
          {.address = string_of(point, "address"), .port = static_cast<uint16_t>(u64_of(point, "port"))});
    }
    options.link_name = string_of(object, "linkName");
    auto key = to_bytes(object.Get("clusterKey"));
    EXTMEM_ASSERT(key.size() == options.cluster_key.size());
    std::copy(key.begin(), key.end(), options.cluster_key.begin());
    options.incarnation = u64_of(object, "incarnation");
    options.donated_bytes = u64_of(object, "donatedBytes");
    options.threads = static_cast<unsigned>(u64_of(object, "threads"));
    if (object.Get("store").IsObject()) {
      auto store = object.Get("store").As<Napi::Object>();
      options.store = store_of(store);
      on_progress_ = Napi::Persistent(store.Get("onProgress").As<Napi::Function>());
    }
    on_refused_ = Napi::Persistent(object.Get("onRefused").As<Napi::Function>());
    options.on_refused = [this](const std::string& peer, const std::string& why) {
      main_thread_.run([this, peer, why](Napi::Env env) {
        if (server_ != nullptr) on_refused_.Call({Napi::String::New(env, peer), Napi::String::New(env, why)});
      });
    };
    on_window_ = Napi::Persistent(object.Get("onWindow").As<Napi::Function>());
    options.on_window = [this](uint64_t not_after_ms) {
      main_thread_.run([this, not_after_ms](Napi::Env env) {
        if (server_ != nullptr) on_window_.Call({from_u64(env, not_after_ms)});
      });
    };
    auto access = object.Get("access").As<Napi::Array>();
    for (uint32_t index = 0; index < access.Length(); ++index) {
      auto one = access.Get(index).As<Napi::Object>();
      options.access.push_back(
          {.region = u64_of(one, "region"), .version = static_cast<uint32_t>(u64_of(one, "version"))});
    }
    if (object.Get("trace").ToBoolean()) trace::enabled.store(true);
    std::string error;
    bool store_failed = false;
    server_ = region::RegionServer::create(options, error, &store_failed);
    if (server_ == nullptr) {
      main_thread_.close();
      throw coded_error(info.Env(), store_failed ? "ESTORE" : "EADDRINUSE", error);
    }
    persisting_ = std::make_unique<JobThread>();
    background_ = std::make_unique<JobThread>();
    settling_ = std::make_unique<JobThread>();
    revoking_ = std::make_unique<JobThread>();
    copying_ = std::make_unique<JobThread>();
    summing_ = std::make_unique<JobThread>();
  }
  ~RegionServer() override { shut_down(); }

 private:
  region::RegionServer& server(Napi::Env env) {
    if (server_ == nullptr) throw coded_error(env, "ECLOSED", "the region server is closed");
    return *server_;
  }

  void check(Napi::Env env, region::Status status, const char* what) {
    int error = errno_of(status);
    if (error != 0) throw errno_error(env, error, what);
  }

  Napi::Value ports(const Napi::CallbackInfo& info) {
    Napi::Array list = Napi::Array::New(info.Env());
    for (uint16_t port : server(info.Env()).ports()) list.Set(list.Length(), from_u64(info.Env(), port));
    return list;
  }
  Napi::Value serves_verbs(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), server(info.Env()).serves_verbs());
  }

  Napi::Value incarnation(const Napi::CallbackInfo& info) {
    return from_u64(info.Env(), server(info.Env()).incarnation());
  }

  void create_region(const Napi::CallbackInfo& info) {
    check(info.Env(), server(info.Env()).create_region(to_u64(info[0]), to_u64(info[1]), info[2].ToBoolean()),
          "creating a region");
  }
  void resize_region(const Napi::CallbackInfo& info) {
    check(info.Env(), server(info.Env()).resize_region(to_u64(info[0]), to_u64(info[1])), "resizing a region");
  }
  void destroy_region(const Napi::CallbackInfo& info) {
    check(info.Env(), server(info.Env()).destroy_region(to_u64(info[0])), "destroying a region");
  }
  void punch_region(const Napi::CallbackInfo& info) {
    check(info.Env(), server(info.Env()).punch_region(to_u64(info[0]), to_u64(info[1]), to_u64(info[2])),
          "punching a region");
  }

  void offer_memory(const Napi::CallbackInfo& info) { server(info.Env()).offer_memory(to_u64(info[0])); }

  /// Moving regions copies memory: on a thread of its own, so that heartbeats go on.
  Napi::Value fence_clients(const Napi::CallbackInfo& info) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(info.Env());
    auto& server = this->server(info.Env());
    auto list = info[0].As<Napi::Array>();
    std::vector<region::ClientRange> clients;
    for (uint32_t index = 0; index < list.Length(); ++index) {
      auto range = list.Get(index).As<Napi::Object>();
      clients.push_back({.first = u64_of(range, "first"), .last = u64_of(range, "last")});
    }
    if (fencing_.joinable()) fencing_.join();
    fencing_ = std::thread([this, &server, clients = std::move(clients), deferred] {
      server.fence_clients(clients);
      main_thread_.run([deferred](Napi::Env env) { deferred->Resolve(env.Undefined()); });
    });
    return deferred->Promise();
  }

  /// Moves regions, as a fence does.
  Napi::Value set_access(const Napi::CallbackInfo& info) {
    const uint64_t region = to_u64(info[0]);
    const auto version = static_cast<uint32_t>(to_u64(info[1]));
    return run_job(info.Env(), revoking_, [region, version, keep = numbers_of(info[2])](auto& server) {
      server.set_access(region, version, keep);  // of one that is gone there is nothing to take back
      return std::string();
    });
  }
  Napi::Value end_overdue(const Napi::CallbackInfo& info) {
    return run_job(info.Env(), revoking_, [](auto& server) {
      server.end_overdue();
      return std::string();
    });
  }
  void set_link_addresses(const Napi::CallbackInfo& info) {
    std::vector<std::string> addresses;
    auto list = info[0].As<Napi::Array>();
    for (uint32_t index = 0; index < list.Length(); ++index)
      addresses.push_back(list.Get(index).ToString().Utf8Value());
    server(info.Env()).set_link_addresses(std::move(addresses));
  }

  Napi::Value list_regions(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto regions = server(env).list_regions();
    Napi::Array list = Napi::Array::New(env, regions.size());
    for (uint32_t index = 0; index < regions.size(); ++index) {
      Napi::Object one = Napi::Object::New(env);
      one.Set("region", from_u64(env, regions[index].id));
      one.Set("bytes", from_u64(env, regions[index].bytes));
      one.Set("residentBytes", from_u64(env, regions[index].resident_bytes));
      one.Set("thin", Napi::Boolean::New(env, regions[index].thin));
      one.Set("absentBytes", from_u64(env, regions[index].absent_bytes));
      one.Set("damagedPages", from_u64(env, regions[index].damaged_pages));
      one.Set("accessVersion", from_u64(env, regions[index].access_version));
      one.Set("usage", usage_of(env, regions[index]));
      list.Set(index, one);
    }
    return list;
  }

  static Napi::Value usage_of(Napi::Env env, const region::RegionInfo& region) {
    const region::RegionUsage& usage = region.usage;
    Napi::Object object = Napi::Object::New(env);
    object.Set("operations", from_u64(env, usage.operations));
    object.Set("bytesRead", from_u64(env, usage.bytes_read));
    object.Set("bytesWritten", from_u64(env, usage.bytes_written));
    object.Set("toldChunks", from_u64(env, usage.told_chunks));
    object.Set("lastAccessMs", from_u64(env, usage.last_access_ms));
    object.Set("given", Napi::Boolean::New(env, region.given));
    Napi::Array hot = Napi::Array::New(env, usage.hot.size());
    for (uint32_t index = 0; index < usage.hot.size(); ++index) {
      Napi::Object one = Napi::Object::New(env);
      one.Set("offset", from_u64(env, usage.hot[index].offset));
      one.Set("heat", Napi::Number::New(env, usage.hot[index].heat));
      hot.Set(index, one);
    }
    object.Set("hot", hot);
    return object;
  }

  Napi::Value list_records(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto records = server(env).list_records();
    Napi::Array list = Napi::Array::New(env, records.size());
    for (uint32_t index = 0; index < records.size(); ++index) {
      Napi::Object one = Napi::Object::New(env);
      one.Set("region", from_u64(env, records[index].region));
      one.Set("ino", from_u64(env, records[index].ino));
      one.Set("record", from_bytes(env, records[index].bytes));
      list.Set(index, one);
    }
    return list;
  }

  void remove_record(const Napi::CallbackInfo& info) {
    check(info.Env(), server(info.Env()).remove_record(to_u64(info[0]), to_u64(info[1])), "removing a record");
  }

  Napi::Value memory(const Napi::CallbackInfo& info) {
    auto memory = server(info.Env()).memory();
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("donatedBytes", from_u64(info.Env(), memory.offered));
    object.Set("reservedBytes", from_u64(info.Env(), memory.reserved));
    object.Set("residentBytes", from_u64(info.Env(), memory.resident));
    return object;
  }

  Napi::Value counters(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto counters = server(env).counters();
    Napi::Object object = Napi::Object::New(env);
    object.Set("connections", from_u64(env, counters.connections));
    object.Set("refused", from_u64(env, counters.refused));
    object.Set("operations", from_u64(env, counters.operations));
    object.Set("bytesRead", from_u64(env, counters.bytes_read));
    object.Set("bytesWritten", from_u64(env, counters.bytes_written));
    object.Set("fencedClients", from_u64(env, counters.fenced_clients));
    return object;
  }

  Napi::Value take_trace(const Napi::CallbackInfo& info) { return from_trace(info.Env()); }

  static region::RegionServer::StoreOptions store_of(const Napi::Object& object) {
    region::RegionServer::StoreOptions options;
    options.path = string_of(object, "path");
    options.limit_bytes = u64_of(object, "limitBytes");
    options.compress = bool_of(object, "compress");
    options.key = to_bytes(object.Get("key"));
    options.lazily = bool_of(object, "lazily");
    options.bytes_per_second = u64_of(object, "bytesPerSecond");
    return options;
  }

  Napi::Value restored(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto& regions = server(env).restored();
    Napi::Array list = Napi::Array::New(env, regions.size());
    for (uint32_t index = 0; index < regions.size(); ++index) {
      Napi::Object one = Napi::Object::New(env);
      one.Set("region", from_u64(env, regions[index].region));
      one.Set("bytes", from_u64(env, regions[index].bytes));
      one.Set("exact", Napi::Boolean::New(env, regions[index].exact));
      list.Set(index, one);
    }
    return list;
  }

  Napi::Value store_status(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto status = server(env).store_status();
    if (!status) return env.Undefined();
    Napi::Object object = Napi::Object::New(env);
    object.Set("usedBytes", from_u64(env, status->used_bytes));
    object.Set("limitBytes", from_u64(env, std::min(status->limit_bytes, uint64_t{1} << 53)));
    object.Set("commits", from_u64(env, status->commits));
    object.Set("writtenBytes", from_u64(env, status->written_bytes));
    object.Set("persistedBytes", from_u64(env, status->persisted_bytes));
    object.Set("damagedBlocks", from_u64(env, status->damaged_blocks));
    object.Set("nsPerMebibyte", from_u64(env, status->ns_per_mebibyte));
    object.Set("absentBytes", from_u64(env, status->absent_bytes));
    object.Set("damagedPages", from_u64(env, status->damaged_pages));
    object.Set("broken", Napi::String::New(env, status->broken));
    return object;
  }

  /// Runs on a thread for what waits for a disk; what it answers is why it failed, or nothing: then `result` is told.
  Napi::Value run_job(
      Napi::Env env, const std::unique_ptr<JobThread>& thread, std::function<std::string(region::RegionServer&)> job,
      std::function<Napi::Value(Napi::Env)> result = [](Napi::Env env) { return env.Undefined(); }) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
    auto& server = this->server(env);
    thread->run([this, &server, job = std::move(job), result = std::move(result), deferred] {
      std::string error = job(server);
      main_thread_.run([deferred, error, result](Napi::Env env) {
        if (error.empty())
          deferred->Resolve(result(env));
        else
          deferred->Reject(coded_error(env, "ESTORE", error).Value());
      });
    });
    return deferred->Promise();
  }

  static std::vector<uint64_t> numbers_of(const Napi::Value& value) {
    std::vector<uint64_t> numbers;
    auto list = value.As<Napi::Array>();
    for (uint32_t index = 0; index < list.Length(); ++index) numbers.push_back(to_u64(list.Get(index)));
    return numbers;
  }

  void tell_progress(const region::RegionServer::PersistProgress& progress) {
    main_thread_.run([this, progress](Napi::Env env) {
      if (server_ != nullptr)
        on_progress_.Call({from_u64(env, progress.done_bytes), from_u64(env, progress.total_bytes)});
    });
  }

  Napi::Value persist(const Napi::CallbackInfo& info) {
    const bool free = info[1].ToBoolean();
    auto freed = std::make_shared<region::RegionServer::Freed>();
    return run_job(
        info.Env(), persisting_,
        [this, pieces = pieces_of(info[0]), free, freed](auto& server) {
          return server.persist(pieces, free ? freed.get() : nullptr,
                                [this](auto& progress) { tell_progress(progress); });
        },
        [freed](Napi::Env env) {
          Napi::Object object = Napi::Object::New(env);
          object.Set("freedBytes", from_u64(env, freed->freed_bytes));
          object.Set("heldBytes", from_u64(env, freed->held_bytes));
          return object;
        });
  }
  Napi::Value persist_in_background(const Napi::CallbackInfo& info) {
    return run_job(info.Env(), background_, [](auto& server) { return server.persist_in_background(); });
  }
  Napi::Value persist_last(const Napi::CallbackInfo& info) {
    return run_job(info.Env(), persisting_, [this](auto& server) {
      return server.persist_last([this](auto& progress) { tell_progress(progress); });
    });
  }

  static std::vector<region::RegionServer::Piece> pieces_of(const Napi::Value& value) {
    std::vector<region::RegionServer::Piece> pieces;
    auto list = value.As<Napi::Array>();
    for (uint32_t index = 0; index < list.Length(); ++index) {
      auto piece = list.Get(index).As<Napi::Object>();
      pieces.push_back(
          {.region = u64_of(piece, "region"), .offset = u64_of(piece, "offset"), .bytes = u64_of(piece, "length")});
    }
    return pieces;
  }

  Napi::Value settle_freed(const Napi::CallbackInfo& info) {
    return run_job(info.Env(), settling_,
                   [pieces = pieces_of(info[0])](auto& server) { return server.settle_freed(pieces); });
  }
  Napi::Value settle_destroyed(const Napi::CallbackInfo& info) {
    return run_job(info.Env(), settling_,
                   [regions = numbers_of(info[0])](auto& server) { return server.settle_destroyed(regions); });
  }

  Napi::Value sum_pieces(const Napi::CallbackInfo& info) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(info.Env());
    auto& server = this->server(info.Env());
    summing_->run([this, &server, pieces = pieces_of(info[0]), deferred] {
      std::vector<std::vector<uint64_t>> sums(pieces.size());
      auto status = protocol::Status::ok;
      for (size_t index = 0; index < pieces.size() && status == protocol::Status::ok; ++index) {
        const auto& piece = pieces[index];
        status = server.sum(piece.region, piece.offset, piece.bytes, sums[index]);
      }
      main_thread_.run([deferred, status, sums = std::move(sums)](Napi::Env env) {
        if (status != protocol::Status::ok)
          return deferred->Reject(coded_error(env, status == protocol::Status::timed_out ? "ETIMEDOUT" : "EIO",
                                              "what is to be compared cannot be read")
                                      .Value());
        Napi::Array list = Napi::Array::New(env, sums.size());
        for (uint32_t index = 0; index < sums.size(); ++index)
          list.Set(index, Napi::Buffer<uint8_t>::Copy(env, reinterpret_cast<const uint8_t*>(sums[index].data()),
                                                      sums[index].size() * sizeof(uint64_t)));
        deferred->Resolve(list);
      });
    });
    return deferred->Promise();
  }

  static move::Copier::Options copier_options_of(const Napi::Object& object) {
    move::Copier::Options options{.credentials = {}, .limit_ms = u64_of(object, "limitMs")};
    options.credentials.client = u64_of(object, "client");
    options.credentials.client_generation = static_cast<uint32_t>(u64_of(object, "clientGeneration"));
    const auto key = to_bytes(object.Get("clientKey"));
    EXTMEM_ASSERT(key.size() == options.credentials.key.size());
    std::copy(key.begin(), key.end(), options.credentials.key.begin());
    return options;
  }
  static std::vector<move::Origin> origins_of(const Napi::Value& value) {
    std::vector<move::Origin> origins;
    auto list = value.As<Napi::Array>();
    for (uint32_t index = 0; index < list.Length(); ++index) {
      auto one = list.Get(index).As<Napi::Object>();
      move::Origin origin{.id = string_of(one, "id"), .endpoints = {}, .incarnation = u64_of(one, "incarnation")};
      auto endpoints = one.Get("endpoints").As<Napi::Array>();
      for (uint32_t at = 0; at < endpoints.Length(); ++at) {
        auto endpoint = endpoints.Get(at).As<Napi::Object>();
        origin.endpoints.push_back(
            {.address = string_of(endpoint, "address"), .port = static_cast<uint16_t>(u64_of(endpoint, "port"))});
      }
      origins.push_back(std::move(origin));
    }
    return origins;
  }
  static std::vector<move::CopyPiece> copy_pieces_of(const Napi::Value& value) {
    std::vector<move::CopyPiece> pieces;
    auto list = value.As<Napi::Array>();
    for (uint32_t index = 0; index < list.Length(); ++index) {
      auto one = list.Get(index).As<Napi::Object>();
      move::CopyPiece piece{.region = u64_of(one, "region"),
                            .offset = u64_of(one, "offset"),
                            .bytes = u64_of(one, "length"),
                            .sources = {}};
      auto sources = one.Get("sources").As<Napi::Array>();
      for (uint32_t at = 0; at < sources.Length(); ++at) {
        auto from = sources.Get(at).As<Napi::Object>();
        move::Source source{.origin = string_of(from, "origin"),
                            .region = u64_of(from, "region"),
                            .region_bytes = u64_of(from, "bytes"),
                            .offset = u64_of(from, "offset"),
                            .capability = {}};
        const auto capability = to_bytes(from.Get("capability"));
        EXTMEM_ASSERT(capability.size() == sizeof source.capability);
        std::memcpy(&source.capability, capability.data(), sizeof source.capability);
        piece.sources.push_back(std::move(source));
      }
      pieces.push_back(std::move(piece));
    }
    return pieces;
  }
  static const char* code_of(move::CopyOutcome::Code code) {
    switch (code) {
      case move::CopyOutcome::Code::stopped:
        return "ECANCELED";
      case move::CopyOutcome::Code::late:
        return "ETIMEDOUT";
      default:
        return "EIO";
    }
  }

  /// One after the other, on a thread of their own.
  Napi::Value copy_pieces(const Napi::CallbackInfo& info) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(info.Env());
    auto object = info[0].As<Napi::Object>();
    auto copier = std::make_shared<move::Copier>(server(info.Env()), copier_options_of(object),
                                                 origins_of(object.Get("origins")));
    {
      std::lock_guard guard(copiers_lock_);
      copiers_.push_back(copier);
    }
    copying_->run([this, copier, pieces = copy_pieces_of(object.Get("pieces")), deferred] {
      const auto outcome = copier->copy(pieces);
      {
        std::lock_guard guard(copiers_lock_);
        std::erase(copiers_, copier);
      }
      main_thread_.run([deferred, outcome](Napi::Env env) {
        if (outcome.code == move::CopyOutcome::Code::ok)
          deferred->Resolve(env.Undefined());
        else
          deferred->Reject(coded_error(env, code_of(outcome.code), outcome.why).Value());
      });
    });
    return deferred->Promise();
  }
  /// Settles when nothing is being copied that was asked for before.
  Napi::Value stop_copying(const Napi::CallbackInfo& info) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(info.Env());
    server(info.Env());
    stop_copiers();
    copying_->run(
        [this, deferred] { main_thread_.run([deferred](Napi::Env env) { deferred->Resolve(env.Undefined()); }); });
    return deferred->Promise();
  }
  void stop_copiers() {
    std::lock_guard guard(copiers_lock_);
    for (auto& copier : copiers_) copier->stop();
  }

  void close(const Napi::CallbackInfo&) { shut_down(); }

  void shut_down() {
    if (server_ == nullptr) return;
    if (fencing_.joinable()) fencing_.join();
    server_->end_background();
    background_.reset();
    persisting_.reset();
    settling_.reset();
    revoking_.reset();
    stop_copiers();
    copying_.reset();
    summing_.reset();
    server_->close();
    server_.reset();
    main_thread_.close();
  }

  MainThread main_thread_;
  Napi::FunctionReference on_refused_, on_progress_, on_window_;
  std::unique_ptr<region::RegionServer> server_;
  // What waits for the store; they use server_. What was freed does not wait until everything is persisted.
  std::unique_ptr<JobThread> persisting_, background_, settling_, revoking_, copying_, summing_;
  std::mutex copiers_lock_;
  std::vector<std::shared_ptr<move::Copier>> copiers_;  // under way, or waiting
  std::thread fencing_;                                 // the latest fence; one at a time
};

}  // namespace

Napi::Function define_region_server(Napi::Env env) { return RegionServer::define(env); }

}  // namespace extmem::binding
