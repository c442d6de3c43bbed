#include "base/verbs/device_list.h"

#include "base/verbs/verbs_library.h"

namespace extmem::verbs {

namespace {

const char* name_of(ibv_port_state state) {
  switch (state) {
    case IBV_PORT_ACTIVE:
      return "active";
    case IBV_PORT_DOWN:
      return "down";
    case IBV_PORT_INIT:
      return "init";
    case IBV_PORT_ARMED:
      return "armed";
    default:
      return "unknown";
  }
}

void append_ports(const Library& library, ibv_device* device, std::vector<DeviceInfo>& into) {
  ibv_context* context = library.open_device(device);
  if (context == nullptr) return;
  ibv_device_attr_ex attributes{};
  // What ibv_query_device_ex does, which names a function of the library.
  const verbs_context* extended = verbs_get_ctx_op(context, query_device_ex);
  const int failure = extended != nullptr ? extended->query_device_ex(context, nullptr, &attributes, sizeof attributes)
                                          : library.query_device(context, &attributes.orig_attr);
  if (failure == 0) {
    const bool paging = (attributes.odp_caps.general_caps & IBV_ODP_SUPPORT) != 0;
    for (unsigned port = 1; port <= attributes.orig_attr.phys_port_cnt; ++port) {
      // The library fills what it had when it was first released, which ends before what was added since.
      ibv_port_attr found{};
      auto* released = reinterpret_cast<_compat_ibv_port_attr*>(&found);
      if (library.query_port(context, static_cast<uint8_t>(port), released) != 0) continue;
      into.push_back({.name = device->name,
                      .port = port,
                      .state = name_of(found.state),
                      .mtu = 128u << found.active_mtu,
                      .on_demand_paging = paging});
    }
  }
  library.close_device(context);
}

}  // namespace

std::vector<DeviceInfo> list_devices() {
  std::vector<DeviceInfo> all;
  const Library* library = Library::get();
  if (library == nullptr) return all;
  int count = 0;
  ibv_device** devices = library->get_device_list(&count);
  if (devices == nullptr) return all;
  for (int index = 0; index < count; ++index) append_ports(*library, devices[index], all);
  library->free_device_list(devices);
  return all;
}

}  // namespace extmem::verbs
