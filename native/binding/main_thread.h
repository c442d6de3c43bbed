// Runs jobs on the JavaScript thread, from any thread, in order. After close() jobs are dropped (their owners settle
// what is pending before that).
#pragma once

#include <napi.h>

#include <functional>

namespace extmem::binding {

class MainThread {
 public:
  using Job = std::function<void(Napi::Env)>;

  MainThread(Napi::Env env, const char* name)
      : function_(Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), name,
                                                0, 1)) {}

  void run(Job job) {
    auto* data = new Job(std::move(job));
    napi_status status = function_.NonBlockingCall(data, [](Napi::Env env, Napi::Function, Job* pending) {
      if (env != nullptr) (*pending)(env);
      delete pending;
    });
    if (status != napi_ok) delete data;
  }
  /// Lets the process end although this is open / keeps it alive.
  void unref(Napi::Env env) { function_.Unref(env); }
  void close() { function_.Release(); }

 private:
  Napi::ThreadSafeFunction function_;
};

}  // namespace extmem::binding
