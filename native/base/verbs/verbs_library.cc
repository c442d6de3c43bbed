#include "base/verbs/verbs_library.h"

#include <dlfcn.h>

#include <optional>

namespace extmem::verbs {

namespace {

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

bool find_verbs(void* from, Library& found) {
  return find(from, "ibv_get_device_list", found.get_device_list) &&
         find(from, "ibv_free_device_list", found.free_device_list) &&
         find(from, "ibv_open_device", found.open_device) && find(from, "ibv_close_device", found.close_device) &&
         find(from, "ibv_query_port", found.query_port) && find(from, "ibv_query_device", found.query_device) &&
         find(from, "ibv_alloc_pd", found.alloc_pd) && find(from, "ibv_dealloc_pd", found.dealloc_pd) &&
         find(from, "ibv_reg_mr_iova", found.reg_mr_iova) && find(from, "ibv_dereg_mr", found.dereg_mr) &&
         find(from, "ibv_create_comp_channel", found.create_comp_channel) &&
         find(from, "ibv_destroy_comp_channel", found.destroy_comp_channel) &&
         find(from, "ibv_create_cq", found.create_cq) && find(from, "ibv_destroy_cq", found.destroy_cq) &&
         find(from, "ibv_get_cq_event", found.get_cq_event) && find(from, "ibv_ack_cq_events", found.ack_cq_events) &&
         find(from, "ibv_modify_qp", found.modify_qp) && find(from, "ibv_query_qp", found.query_qp) &&
         find(from, "ibv_wc_status_str", found.wc_status_str);
}

bool find_rdmacm(void* from, Library& found) {
  return find(from, "rdma_create_event_channel", found.create_event_channel) &&
         find(from, "rdma_destroy_event_channel", found.destroy_event_channel) &&
         find(from, "rdma_create_id", found.create_id) && find(from, "rdma_destroy_id", found.destroy_id) &&
         find(from, "rdma_migrate_id", found.migrate_id) && find(from, "rdma_bind_addr", found.bind_addr) &&
         find(from, "rdma_listen", found.listen) && find(from, "rdma_resolve_addr", found.resolve_addr) &&
         find(from, "rdma_resolve_route", found.resolve_route) && find(from, "rdma_connect", found.connect) &&
         find(from, "rdma_accept", found.accept) && find(from, "rdma_reject", found.reject) &&
         find(from, "rdma_disconnect", found.disconnect) && find(from, "rdma_get_cm_event", found.get_cm_event) &&
         find(from, "rdma_ack_cm_event", found.ack_cm_event) && find(from, "rdma_create_qp", found.create_qp) &&
         find(from, "rdma_destroy_qp", found.destroy_qp) && find(from, "rdma_set_option", found.set_option);
}

/// Never unloaded: providers register with it for good.
std::optional<Library> load() {
  void* verbs = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_GLOBAL);
  void* rdmacm = verbs != nullptr ? dlopen("librdmacm.so.1", RTLD_NOW) : nullptr;
  Library found{};
  if (rdmacm == nullptr || !find_verbs(verbs, found) || !find_rdmacm(rdmacm, found)) return std::nullopt;
  return found;
}

}  // namespace

const Library* Library::get() {
  static const std::optional<Library> library = load();
  return library ? &*library : nullptr;
}

bool Library::has_device() {
  static const bool has = [] {
    const Library* library = get();
    if (library == nullptr) return false;
    int count = 0;
    ibv_device** devices = library->get_device_list(&count);
    if (devices != nullptr) library->free_device_list(devices);
    return count > 0;
  }();
  return has;
}

}  // namespace extmem::verbs
