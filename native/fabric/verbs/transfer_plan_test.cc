#include "fabric/verbs/transfer_plan.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>

#include <vector>

#include "base/verbs/queue_pair.h"

using namespace extmem;
using namespace extmem::fabric;

namespace {

constexpr TransferPlan::Limits kLimits{.segments = 4, .inline_bytes = 64};
constexpr std::array kKeys{TransferPlan::Chunk{.key = 11, .notice = 21}, TransferPlan::Chunk{.key = 12, .notice = 22}};

bool all_registered(void*, const std::byte*, size_t&, uint32_t& key) {
  key = 7;
  return true;
}

bool none_registered(void*, const std::byte*, size_t&, uint32_t&) { return false; }

struct Fixture {
  std::vector<std::byte> memory = std::vector<std::byte>(1 << 20);
  std::vector<iovec> segments;
  Operation operation;
  TransferPlan plan;

  TransferPlan::Outcome build(Op op, uint64_t offset, const std::vector<size_t>& lengths,
                              TransferPlan::FindKey find_key = all_registered) {
    plan.clear();
    return append(op, offset, lengths, find_key);
  }

  TransferPlan::Outcome append(Op op, uint64_t offset, const std::vector<size_t>& lengths,
                               TransferPlan::FindKey find_key = all_registered) {
    segments.clear();
    operation.op = op;
    operation.offset = offset;
    operation.bytes = 0;
    for (size_t length : lengths) {
      segments.push_back({.iov_base = memory.data() + operation.bytes, .iov_len = length});
      operation.bytes += static_cast<uint32_t>(length);
    }
    return plan.append(operation, segments, kKeys, kLimits, find_key, nullptr);
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "whole pages are one request, with the chunk's key and the offset as remote address") {
  REQUIRE(build(Op::write, 8192, {4096, 4096}) == TransferPlan::Outcome::ok);
  REQUIRE(plan.count() == 1);
  CHECK(plan.first().wr.rdma.remote_addr == 8192);
  CHECK(plan.first().wr.rdma.rkey == 11);
  CHECK(plan.first().num_sge == 2);
  CHECK(plan.first().sg_list[1].lkey == 7);
}

TEST_CASE_FIXTURE(Fixture, "what crosses into the next chunk goes on with that chunk's key") {
  REQUIRE(build(Op::read, protocol::kLendBytes - 100, {300}) == TransferPlan::Outcome::ok);
  REQUIRE(plan.count() == 2);
  CHECK(plan.requests()[0].sg_list[0].length == 100);
  CHECK(plan.requests()[1].wr.rdma.rkey == 12);
  CHECK(plan.requests()[1].wr.rdma.remote_addr == protocol::kLendBytes);
  CHECK(plan.requests()[1].sg_list[0].length == 200);
}

TEST_CASE_FIXTURE(Fixture, "a write from within a page is cut at the next one, a read is not") {
  REQUIRE(build(Op::write, 1000, {8192}) == TransferPlan::Outcome::ok);
  REQUIRE(plan.count() == 2);
  CHECK(plan.requests()[0].sg_list[0].length == 4096 - 1000);
  REQUIRE(build(Op::read, 1000, {8192}) == TransferPlan::Outcome::ok);
  CHECK(plan.count() == 1);
}

TEST_CASE_FIXTURE(Fixture, "more segments than a request takes: a write is cut between pages or copied") {
  CHECK(build(Op::write, 0, {4096, 4096, 4096, 4096, 4096}) == TransferPlan::Outcome::ok);
  CHECK(plan.count() == 2);
  CHECK(build(Op::write, 0, {1024, 1024, 1024, 512, 512, 4096}) == TransferPlan::Outcome::copy);
  CHECK(build(Op::read, 0, {1024, 1024, 1024, 512, 512, 4096}) == TransferPlan::Outcome::ok);
  CHECK(plan.count() == 2);
}

TEST_CASE_FIXTURE(Fixture, "memory that is not registered is copied, unless it is little enough to go inline") {
  CHECK(build(Op::write, 0, {4096}, none_registered) == TransferPlan::Outcome::copy);
  CHECK(build(Op::read, 0, {8}, none_registered) == TransferPlan::Outcome::copy);
  REQUIRE(build(Op::write, 0, {8}, none_registered) == TransferPlan::Outcome::ok);
  CHECK((plan.first().send_flags & IBV_SEND_INLINE) != 0);
}

TEST_CASE_FIXTURE(Fixture, "pages stay whole where a packet holds one, or the write is one packet within one") {
  build(Op::write, 100, {5000});
  CHECK(TransferPlan::keeps_pages_whole(operation, 4096));
  CHECK_FALSE(TransferPlan::keeps_pages_whole(operation, 1024));
  build(Op::write, 100, {1024});
  CHECK(TransferPlan::keeps_pages_whole(operation, 1024));
  build(Op::write, 4000, {200});
  CHECK_FALSE(TransferPlan::keeps_pages_whole(operation, 1024));
}

TEST_CASE_FIXTURE(Fixture, "operations form one chain, and what cannot be appended leaves it as it was") {
  REQUIRE(build(Op::write, 0, {4096}) == TransferPlan::Outcome::ok);
  CHECK(append(Op::read, 0, {4096}, none_registered) == TransferPlan::Outcome::copy);
  CHECK(plan.count() == 1);
  CHECK(plan.first().next == nullptr);
  REQUIRE(append(Op::read, protocol::kLendBytes - 100, {300}) == TransferPlan::Outcome::ok);
  REQUIRE(plan.count() == 3);
  CHECK(plan.first().wr_id == verbs::QueuePair::kEndsTransfer);
  CHECK(plan.first().next == &plan.requests()[1]);
  CHECK(plan.requests()[1].wr_id == 0);
  CHECK(plan.requests()[2].wr_id == verbs::QueuePair::kEndsTransfer);
  plan.remove_last();
  CHECK(plan.count() == 1);
  CHECK(plan.first().next == nullptr);
}

TEST_CASE_FIXTURE(Fixture, "a write with notice tells of each chunk with the last request that goes there") {
  operation.notify = true;
  REQUIRE(build(Op::write, protocol::kLendBytes - 5000, {10'000}) == TransferPlan::Outcome::ok);
  REQUIRE(plan.count() == 3);  // up to the page's end, up to the chunk's, and the rest
  CHECK(plan.notices() == 2);
  CHECK(plan.requests()[0].opcode == IBV_WR_RDMA_WRITE);
  CHECK(plan.requests()[1].opcode == IBV_WR_RDMA_WRITE_WITH_IMM);
  CHECK(ntohl(plan.requests()[1].imm_data) == 21);
  CHECK(ntohl(plan.requests()[2].imm_data) == 22);
  REQUIRE(build(Op::read, 0, {4096}) == TransferPlan::Outcome::ok);
  CHECK(plan.notices() == 0);
}
