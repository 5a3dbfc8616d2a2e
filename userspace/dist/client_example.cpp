// Issues a token, presents it, and asks the node about it: the whole way of a capability token.
//
//   client_example KEY ISSUER TENANT ENDPOINT [SOCKETS]
//
// KEY is a file that /etc/holdfast/anchors.yaml lists the public half of (openssl genpkey
// -algorithm ed25519 -out cp.pem), ISSUER its name there, SOCKETS where the sockets are:
// /run/holdfast. Three parties are played here: a control plane, which signs; a holder, who
// presents the token and is granted a lease; and a service, which is shown the use token and asks
// the node whether it holds.
//
//   c++ -std=c++23 client_example.cpp $(pkg-config --cflags --libs --static holdfast-client)
#include <iostream>

#include <holdfast/token/ask.hpp>
#include <holdfast/token/issuer.hpp>
#include <holdfast/token/signers.hpp>
#include <holdfast/wire/client.hpp>
#include <holdfast/wire/verify_client.hpp>
#include <unistd.h>

using namespace holdfast;

// The value, or the end of this example.
template <typename T>
T need(Result<T> result) {
  if (result) return std::move(*result);
  std::cerr << "client_example: " << result.error().text() << "\n";
  std::exit(1);
}

int main(int argc, char** argv) {
  if (argc < 5 || argc > 6) {
    std::cerr << "usage: client_example KEY ISSUER TENANT ENDPOINT [SOCKETS]\n";
    return 2;
  }
  const std::string sockets = argc == 6 ? argv[5] : "/run/holdfast";

  // The node says first who it is, and in which epoch.
  wire::Client control = need(wire::Client::connect(sockets + "/control.sock"));
  token::Batch batch;
  batch.node = need(control.hello().get_text("node"));
  batch.epoch = need(control.hello().get_u64("epoch"));
  std::cout << "node    " << batch.node << ", epoch " << batch.epoch << "\n";

  // The control plane. It may stand anywhere; one call makes many tokens under one signature.
  const token::Issuer issuer(need(token::open_signer(argv[1])), argv[2]);
  token::TokenRequest request;
  request.tenant = argv[3];
  request.endpoints = {argv[4]};
  request.operations = {"connect"};
  request.holder = "uid:" + std::to_string(getuid());
  const std::vector<token::IssuedToken> grants = need(issuer.issue(batch, {&request, 1}));
  std::cout << "issued  a grant token of " << grants[0].bytes.size() << " bytes\n";

  // The holder.
  const auto token = cbor::Value::bytes(grants[0].bytes);
  const cbor::Value lease = need(control.call("lease.grant", cbor::Value::map({{"token", token}})));
  std::cout << "granted lease " << need(lease.get_text("id")) << ", generation "
            << need(lease.get_u64("generation")) << "\n";

  // The service.
  wire::VerifyClient service = need(wire::VerifyClient::connect(sockets + "/verify.sock"));
  const std::vector<uint8_t> shown = need(token::from_text(need(lease.get_text("token"))));
  for (const cbor::Value& each : *need(lease.get_array("resources"))) {
    const std::string& resource = *each.as_text();
    for (const char* operation : {"connect", "erase"}) {
      wire::CheckFrame frame;
      if (!token::add_check(frame, shown, operation, resource)) return 1;
      const std::vector<wire::Verdict> verdicts = need(service.ask(frame));
      std::cout << "asked   " << operation << " on " << resource << ": "
                << service.reason(verdicts.at(0).reason) << "\n";
    }
  }
}
