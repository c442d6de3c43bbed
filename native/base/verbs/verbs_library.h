// libibverbs and librdmacm, loaded when they are first asked for: extmem runs where they are not. Their types and those
// functions that are inline in their headers are used as they are; everything that they export is called through here.
// Any thread.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

namespace extmem::verbs {

struct Library {
  /// Null where the libraries cannot be loaded.
  static const Library* get();
  /// Whether the libraries are there and the kernel has a device. Looked up once.
  static bool has_device();

  decltype(&::ibv_free_device_list) free_device_list;
  decltype(&::ibv_open_device) open_device;
  decltype(&::ibv_close_device) close_device;
  int (*query_port)(ibv_context* device, uint8_t port, _compat_ibv_port_attr* attributes);
  decltype(&::ibv_query_device) query_device;
  decltype(&::ibv_alloc_pd) alloc_pd;
  decltype(&::ibv_dealloc_pd) dealloc_pd;
  decltype(&::ibv_dereg_mr) dereg_mr;
  decltype(&::ibv_create_comp_channel) create_comp_channel;
  decltype(&::ibv_destroy_comp_channel) destroy_comp_channel;
  decltype(&::ibv_create_cq) create_cq;
  decltype(&::ibv_destroy_cq) destroy_cq;
  decltype(&::ibv_get_cq_event) get_cq_event;
  decltype(&::ibv_ack_cq_events) ack_cq_events;
  decltype(&::ibv_modify_qp) modify_qp;
  decltype(&::ibv_query_qp) query_qp;
  decltype(&::ibv_wc_status_str) wc_status_str;
  ibv_device** (*get_device_list)(int* count);
  ibv_mr* (*reg_mr_iova)(ibv_pd* pd, void* address, size_t bytes, uint64_t iova, int access);

  decltype(&::rdma_create_event_channel) create_event_channel;
  decltype(&::rdma_destroy_event_channel) destroy_event_channel;
  decltype(&::rdma_create_id) create_id;
  decltype(&::rdma_destroy_id) destroy_id;
  decltype(&::rdma_migrate_id) migrate_id;
  decltype(&::rdma_bind_addr) bind_addr;
  decltype(&::rdma_listen) listen;
  decltype(&::rdma_resolve_addr) resolve_addr;
  decltype(&::rdma_resolve_route) resolve_route;
  decltype(&::rdma_connect) connect;
  decltype(&::rdma_accept) accept;
  decltype(&::rdma_reject) reject;
  decltype(&::rdma_disconnect) disconnect;
  decltype(&::rdma_get_cm_event) get_cm_event;
  decltype(&::rdma_ack_cm_event) ack_cm_event;
  decltype(&::rdma_create_qp) create_qp;
  decltype(&::rdma_destroy_qp) destroy_qp;
  decltype(&::rdma_set_option) set_option;
};

}  // namespace extmem::verbs
