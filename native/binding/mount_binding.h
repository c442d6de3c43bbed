// class Mount of src/binding/index.ts.
#pragma once

#include <napi.h>

namespace extmem::binding {

Napi::Function define_mount(Napi::Env env);
Napi::Function define_region_server(Napi::Env env);
Napi::Function define_mapping(Napi::Env env);

}  // namespace extmem::binding
