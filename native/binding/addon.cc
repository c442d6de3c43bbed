// The addon's entry point; src/binding/index.ts declares what is exported here, in the same order.
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>

#include "base/verbs/device_list.h"
#include "base/verbs/verbs_library.h"
#include "binding/convert.h"
#include "binding/mount_binding.h"
#include "fuse/mount_point.h"

namespace extmem::binding {

namespace {

void force_unmount(const Napi::CallbackInfo& info) {
  std::string mount_point = info[0].As<Napi::String>().Utf8Value();
  int error = fuse::force_unmount(mount_point);
  if (error != 0) throw errno_error(info.Env(), error, "unmounting " + mount_point);
}

Napi::Array list_rdma_ports(Napi::Env env) {
  Napi::Array rows = Napi::Array::New(env);
  for (const verbs::DeviceInfo& port : verbs::list_devices()) {
    Napi::Object row = Napi::Object::New(env);
    row.Set("device", Napi::String::New(env, port.name));
    row.Set("port", Napi::Number::New(env, port.port));
    row.Set("state", Napi::String::New(env, port.state));
    row.Set("mtu", Napi::Number::New(env, port.mtu));
    row.Set("onDemandPaging", Napi::Boolean::New(env, port.on_demand_paging));
    rows.Set(rows.Length(), row);
  }
  return rows;
}

Napi::Value probe(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Napi::Object found = Napi::Object::New(env);
  int fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  found.Set("fuseDevice", Napi::Boolean::New(env, fuse_fd >= 0));
  if (fuse_fd >= 0) close(fuse_fd);
  found.Set("fuseMinor", Napi::Number::New(env, FUSE_KERNEL_MINOR_VERSION));
  // An io_uring of no entries is refused with EINVAL where there is io_uring, and otherwise where there is none.
  bool io_uring = syscall(SYS_io_uring_setup, 0, nullptr) == -1 && (errno == EINVAL || errno == EFAULT);
  found.Set("ioUring", Napi::Boolean::New(env, io_uring));
  std::ifstream parameter("/sys/module/fuse/parameters/enable_uring");
  char enabled = '-';
  parameter >> enabled;
  found.Set("ioUringFuse", Napi::String::New(env, enabled == 'Y' ? "on" : enabled == 'N' ? "off" : "absent"));
  int memfd = memfd_create("extmem-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  found.Set("memfdSeals", Napi::Boolean::New(env, memfd >= 0));
  if (memfd >= 0) close(memfd);
  found.Set("rdmaLibraries", Napi::Boolean::New(env, verbs::Library::get() != nullptr));
  found.Set("rdma", list_rdma_ports(env));
  return found;
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  exports.Set("RegionServer", define_region_server(env));
  exports.Set("Mount", define_mount(env));
  exports.Set("Mapping", define_mapping(env));
  exports.Set("forceUnmount", Napi::Function::New(env, force_unmount));
  exports.Set("probe", Napi::Function::New(env, probe));
  return exports;
}

}  // namespace

NODE_API_MODULE(extmem, initialize)

}  // namespace extmem::binding
