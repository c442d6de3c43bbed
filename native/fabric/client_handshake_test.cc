#include "fabric/client_handshake.h"

#include <doctest/doctest.h>

#include "region/handshake.h"

using namespace extmem;
using fabric::ClientHandshake;
using protocol::Status;

namespace {

constexpr uint64_t kIncarnation = 7;

Key cluster_key() {
  Key key;
  key.fill(1);
  return key;
}

fabric::Credentials credentials_of(uint64_t client) {
  return {.client = client, .client_generation = 1, .key = derive_client_key(cluster_key(), client, 1)};
}

}  // namespace

TEST_CASE("both sides prove that they know the client's key") {
  const Key key = cluster_key();
  ClientHandshake client(credentials_of(5), {.index = 3, .generation = 9, .incarnation = kIncarnation});
  region::Handshake appliance(key, kIncarnation);
  CHECK(client.accept(appliance.answer(client.hello())) == Status::ok);
  CHECK(appliance.verify(client.proof()));
  CHECK(appliance.link() == region::LinkTable::Link{.client = 5, .client_generation = 1, .link = 3});
  protocol::ClientProof forged = client.proof();
  forged.proof[31] ^= 1;
  CHECK_FALSE(appliance.verify(forged));
}

TEST_CASE("an appliance with another key is not believed, whatever it says") {
  const Key wrong{};
  region::Handshake impostor(wrong, kIncarnation);
  ClientHandshake client(credentials_of(5), {.index = 0, .generation = 1, .incarnation = kIncarnation});
  CHECK(client.accept(impostor.answer(client.hello())) == Status::denied);
  region::Handshake restarted(wrong, kIncarnation + 1);
  CHECK(client.accept(restarted.answer(client.hello())) == Status::denied);
}

TEST_CASE("a new incarnation is believed when it is proved") {
  const Key key = cluster_key();
  region::Handshake restarted(key, kIncarnation + 1);
  ClientHandshake client(credentials_of(5), {.index = 0, .generation = 1, .incarnation = kIncarnation});
  protocol::ServerHello answer = restarted.answer(client.hello());
  CHECK(client.accept(answer) == Status::stale_incarnation);
  answer.proof[0] ^= 1;
  CHECK(client.accept(answer) == Status::denied);
}

TEST_CASE("another version is told apart on both sides") {
  const Key key = cluster_key();
  region::Handshake appliance(key, kIncarnation);
  ClientHandshake client(credentials_of(5), {.index = 0, .generation = 1, .incarnation = kIncarnation});
  protocol::ClientHello hello = client.hello();
  hello.version = 2;
  CHECK(client.accept(appliance.answer(hello)) == Status::bad_version);
}

TEST_CASE("link generations rise") {
  const uint32_t first = fabric::next_link_generation();
  CHECK(fabric::next_link_generation() > first);
}
