{
  "targets": [
    {
      "target_name": "extmem",
      "sources": ["<!@(find native/binding -name '*.cc')"],
      "include_dirs": ["native", "<!@(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=9", "NODE_ADDON_API_DISABLE_DEPRECATED", "_GNU_SOURCE", "_FILE_OFFSET_BITS=64"],
      "cflags!": ["-fno-exceptions"],
      "cflags_cc!": ["-fno-exceptions", "-std=gnu++17", "-std=gnu++1y", "-fno-rtti"],
      "cflags_cc": ["-std=c++20", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-cast-function-type", "-fexceptions", "-fvisibility=hidden"],
      "libraries": ["<(module_root_dir)/build/native/plain/libextmem.a", "-lzstd"],
      "conditions": [["OS!='linux'", { "sources": ["extmem_runs_on_linux_only"] }]]
    }
  ]
}
