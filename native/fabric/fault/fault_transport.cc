#include "fabric/fault/fault_transport.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem::fabric {

namespace {

constexpr uint64_t kReorderNs = 2'000'000;

bool parse_duration(const std::string& text, uint64_t& duration_ns) {
  char* unit = nullptr;
  const double number = std::strtod(text.c_str(), &unit);
  const std::string name(unit);
  const double scale = name == "us" ? 1e3 : name == "ms" ? 1e6 : name == "s" ? 1e9 : 0;
  duration_ns = static_cast<uint64_t>(number * scale);
  return unit != text.c_str() && scale != 0 && number >= 0;
}

bool parse_status(const std::string& text, Status& status) {
  static constexpr std::pair<const char*, Status> kNames[] = {
      {"denied", Status::denied},           {"forbidden", Status::forbidden}, {"out_of_range", Status::out_of_range},
      {"not_present", Status::not_present}, {"fenced", Status::fenced},       {"unreachable", Status::unreachable},
      {"timed_out", Status::timed_out},     {"no_space", Status::no_space},   {"bad_request", Status::bad_request}};
  for (auto& [name, value] : kNames) {
    if (text == name) {
      status = value;
      return true;
    }
  }
  return false;
}

}  // namespace

bool FaultPlan::parse(const std::string& text, FaultPlan& plan, std::string& error) {
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    error = "the fault plan's part '" + part + "' is not what=probability[:argument]";
    const size_t equals = part.find('=');
    if (equals == std::string::npos) return false;
    const std::string what = part.substr(0, equals);
    Chance* chance = what == "delay"     ? &plan.delay
                     : what == "reorder" ? &plan.reorder
                     : what == "error"   ? &plan.error
                     : what == "lost"    ? &plan.lost
                     : what == "cut"     ? &plan.cut
                                         : nullptr;
    if (chance == nullptr) return false;
    const size_t colon = part.find(':', equals);
    char* end = nullptr;
    chance->probability = std::strtod(part.c_str() + equals + 1, &end);
    const bool ends_there = colon == std::string::npos ? *end == 0 : end == part.c_str() + colon;
    if (!ends_there || chance->probability < 0 || chance->probability > 1) return false;
    const std::string argument = colon == std::string::npos ? "" : part.substr(colon + 1);
    if (chance == &plan.delay && !parse_duration(argument, chance->duration_ns)) return false;
    const bool takes_status = chance == &plan.error || chance == &plan.lost;
    if (takes_status && !argument.empty() && !parse_status(argument, chance->status)) return false;
  }
  error.clear();
  return true;
}

/// Waits for its time.
struct FaultTransport::Held final : Timer {
  FaultTransport* owner;
  Operation* operation;
  void on_timer() override { owner->let_go(*this); }
};

/// Stands in for the submitter's completion.
struct FaultTransport::Falsified {
  FaultTransport* owner;
  void (*complete)(Operation&);
  void* context;
};

FaultTransport::FaultTransport(Reactor& reactor, std::unique_ptr<Router> inner, uint64_t seed, const std::string& plan)
    : reactor_(reactor), inner_(std::move(inner)), random_(seed) {
  std::string error;
  if (!FaultPlan::parse(plan, plan_, error)) std::fprintf(stderr, "extmem: %s; it is ignored\n", error.c_str());
}

FaultTransport::~FaultTransport() { close(); }

bool FaultTransport::happens(const FaultPlan::Chance& chance) {
  // One draw each, whether or not it can happen: the sequence depends on the seed alone.
  const double draw = static_cast<double>(random_() >> 11) * 0x1p-53;
  return draw < chance.probability;
}

void FaultTransport::submit(Operation& operation) {
  if (closed_) return inner_->submit(operation);
  const bool cut = happens(plan_.cut), error = happens(plan_.error), lost = happens(plan_.lost),
             delay = happens(plan_.delay), reorder = happens(plan_.reorder);
  if (cut) inner_->cut(*operation.region->appliance);
  if (error) {
    operation.status = plan_.error.status;
    return operation.complete(operation);
  }
  if (lost) falsify(operation);
  if (delay) return hold(operation, plan_.delay.duration_ns);
  if (reorder && reordered_ == nullptr) {
    hold(operation, kReorderNs);
    reordered_ = held_.back().get();
    return;
  }
  Held* overtaken = std::exchange(reordered_, nullptr);
  pass(operation);
  // Passing one on may complete others and so let go of it already.
  const bool still_held = std::any_of(held_.begin(), held_.end(), [&](auto& held) { return held.get() == overtaken; });
  if (overtaken != nullptr && still_held) let_go(*overtaken);
}

void FaultTransport::pass(Operation& operation) { inner_->submit(operation); }

void FaultTransport::falsify(Operation& operation) {
  operation.context = new Falsified{.owner = this, .complete = operation.complete, .context = operation.context};
  operation.complete = [](Operation& done) {
    std::unique_ptr<Falsified> truth(static_cast<Falsified*>(done.context));
    done.context = truth->context;
    done.complete = truth->complete;
    if (done.status == Status::ok) done.status = truth->owner->plan_.lost.status;
    done.complete(done);
  };
}

void FaultTransport::hold(Operation& operation, uint64_t duration_ns) {
  const uint64_t now = monotonic_ns();
  uint64_t due = now + duration_ns;
  if (operation.deadline_ns != 0) due = std::min(due, operation.deadline_ns);
  held_.push_back(std::make_unique<Held>());
  Held& held = *held_.back();
  held.owner = this;
  held.operation = &operation;
  reactor_.arm(held, due);
}

void FaultTransport::let_go(Held& held) {
  reactor_.cancel(held);
  if (reordered_ == &held) reordered_ = nullptr;
  Operation& operation = *held.operation;
  std::erase_if(held_, [&](auto& one) { return one.get() == &held; });
  const bool late = operation.deadline_ns != 0 && monotonic_ns() >= operation.deadline_ns;
  if (!late) return pass(operation);
  operation.status = Status::timed_out;
  operation.complete(operation);
}

void FaultTransport::close() {
  if (closed_) return;
  closed_ = true;
  reordered_ = nullptr;
  while (!held_.empty()) {
    Held& held = *held_.back();
    reactor_.cancel(held);
    Operation& operation = *held.operation;
    held_.pop_back();
    operation.status = Status::closed;
    operation.complete(operation);
  }
  inner_->close();
}

}  // namespace extmem::fabric
