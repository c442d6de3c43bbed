// class RegionServer of src/binding/index.ts.
#include <errno.h>

#include <memory>
#include <thread>

#include "base/trace.h"
#include "binding/convert.h"
#include "binding/main_thread.h"
#include "binding/mount_binding.h"
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
    return DefineClass(
        env, "RegionServer",
        {InstanceAccessor<&RegionServer::ports>("ports"), InstanceAccessor<&RegionServer::serves_verbs>("servesVerbs"),
         InstanceMethod<&RegionServer::create_region>("createRegion"),
         InstanceMethod<&RegionServer::resize_region>("resizeRegion"),
         InstanceMethod<&RegionServer::destroy_region>("destroyRegion"),
         InstanceMethod<&RegionServer::punch_region>("punchRegion"),
         InstanceMethod<&RegionServer::fence_clients>("fenceClients"),
         InstanceMethod<&RegionServer::offer_memory>("offerMemory"),
         InstanceMethod<&RegionServer::list_regions>("listRegions"),
         InstanceMethod<&RegionServer::list_records>("listRecords"),
         InstanceMethod<&RegionServer::remove_record>("removeRecord"), InstanceMethod<&RegionServer::memory>("memory"),
         InstanceMethod<&RegionServer::counters>("counters"), InstanceMethod<&RegionServer::take_trace>("takeTrace"),
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
    on_refused_ = Napi::Persistent(object.Get("onRefused").As<Napi::Function>());
    options.on_refused = [this](const std::string& peer, const std::string& why) {
      main_thread_.run([this, peer, why](Napi::Env env) {
        if (server_ != nullptr) on_refused_.Call({Napi::String::New(env, peer), Napi::String::New(env, why)});
      });
    };
    if (object.Get("trace").ToBoolean()) trace::enabled.store(true);
    std::string error;
    server_ = region::RegionServer::create(options, error);
    if (server_ == nullptr) {
      main_thread_.close();
      throw coded_error(info.Env(), "EADDRINUSE", error);
    }
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
      list.Set(index, one);
    }
    return list;
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

  void close(const Napi::CallbackInfo&) { shut_down(); }

  void shut_down() {
    if (server_ == nullptr) return;
    if (fencing_.joinable()) fencing_.join();
    server_->close();
    server_.reset();
    main_thread_.close();
  }

  MainThread main_thread_;
  Napi::FunctionReference on_refused_;
  std::unique_ptr<region::RegionServer> server_;
  std::thread fencing_;  // the latest fence; one at a time
};

}  // namespace

Napi::Function define_region_server(Napi::Env env) { return RegionServer::define(env); }

}  // namespace extmem::binding
