// class Mapping of src/binding/index.ts: mmap(2) of a file as a Buffer.
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "binding/convert.h"
#include "binding/mount_binding.h"

namespace extmem::binding {

namespace {

class Mapping final : public Napi::ObjectWrap<Mapping> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Mapping",
                       {InstanceAccessor<&Mapping::buffer>("buffer"), InstanceMethod<&Mapping::sync>("sync"),
                        InstanceMethod<&Mapping::advise>("advise"), InstanceMethod<&Mapping::close>("close")});
  }

  explicit Mapping(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Mapping>(info) {
    Napi::Env env = info.Env();
    std::string path = info[0].As<Napi::String>().Utf8Value();
    auto options = info[1].As<Napi::Object>();
    bool writable = bool_of(options, "writable");
    bool shared = bool_of(options, "shared");
    uint64_t offset = u64_of(options, "offset");
    length_ = u64_of(options, "length");
    int fd = open(path.c_str(), (writable && shared ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0) throw errno_error(env, errno, "opening " + path);
    struct stat status;
    bool inside = fstat(fd, &status) == 0 && length_ > 0 && offset + length_ <= static_cast<uint64_t>(status.st_size);
    if (!inside) {
      ::close(fd);
      throw coded_error(env, "EINVAL", "mapping " + path + ": the range must be inside the file and not empty");
    }
    memory_ = mmap(nullptr, length_, PROT_READ | (writable ? PROT_WRITE : 0), shared ? MAP_SHARED : MAP_PRIVATE, fd,
                   static_cast<off_t>(offset));
    int error = errno;
    ::close(fd);
    if (memory_ == MAP_FAILED) {
      memory_ = nullptr;
      throw errno_error(env, error, "mapping " + path);
    }
    auto whole = Napi::ArrayBuffer::New(env, memory_, length_);
    array_ = Napi::Persistent(whole);
  }
  ~Mapping() override { unmap(); }

 private:
  Napi::Value buffer(const Napi::CallbackInfo& info) {
    check(info.Env());
    auto from = info.Env().Global().Get("Buffer").As<Napi::Object>().Get("from").As<Napi::Function>();
    return from.Call({array_.Value()});
  }
  void sync(const Napi::CallbackInfo& info) {
    check(info.Env());
    if (msync(memory_, length_, MS_SYNC) != 0) throw errno_error(info.Env(), errno, "msync");
  }
  void advise(const Napi::CallbackInfo& info) {
    check(info.Env());
    std::string name = info[0].As<Napi::String>().Utf8Value();
    int advice = name == "random"       ? MADV_RANDOM
                 : name == "sequential" ? MADV_SEQUENTIAL
                 : name == "willneed"   ? MADV_WILLNEED
                 : name == "dontneed"   ? MADV_DONTNEED
                                        : MADV_NORMAL;
    if (madvise(memory_, length_, advice) != 0) throw errno_error(info.Env(), errno, "madvise");
  }
  void close(const Napi::CallbackInfo&) {
    if (memory_ == nullptr) return;
    array_.Value().Detach();  // a late access sees an empty buffer, not freed memory
    unmap();
  }

  void check(Napi::Env env) {
    if (memory_ == nullptr) throw coded_error(env, "ECLOSED", "the mapping is closed");
  }
  void unmap() {
    if (memory_ != nullptr) munmap(memory_, length_);
    memory_ = nullptr;
  }

  void* memory_ = nullptr;
  size_t length_ = 0;
  Napi::Reference<Napi::ArrayBuffer> array_;
};

}  // namespace

Napi::Function define_mapping(Napi::Env env) { return Mapping::define(env); }

}  // namespace extmem::binding
