#include "userspace/daemon/detach.hpp"

#include <filesystem>

#include <fmt/format.h>

namespace holdfast {

Result<std::vector<std::string>> detach_node(Node& node, const NodeOptions& options) {
  std::vector<std::string> removed;
  std::string left;
  const auto failed = [&](const std::string& what) { left += left.empty() ? what : "; " + what; };

  for (const LinkInfo& link : node.network().links) {
    const Attachments& hooks = node.plane().attachments;
    const bool ours = hooks.verify_tenant_port({link.ifindex, link.name}).has_value() ||
                      hooks.verify_uplink({link.ifindex, link.name}).has_value();
    if (Status ok = node.plane().attachments.detach(link.ifindex); !ok) {
      failed(ok.error().text());
    } else if (ours) {
      removed.push_back("hooks of interface " + link.name);
    }
  }
  if (node.plane().nft.is_off()) {
    // There is none to remove.
  } else if (Status ok = node.plane().nft.remove(); ok) {
    removed.push_back("nftables table inet " + node.plane().nft.name());
  } else {
    failed(ok.error().text());
  }
  std::error_code error;
  const auto pins = std::filesystem::remove_all(options.plane.kernel.pin_dir, error);
  if (error) {
    failed("removing " + options.plane.kernel.pin_dir + ": " + error.message());
  } else {
    removed.push_back(fmt::format("{} pins under {}", pins, options.plane.kernel.pin_dir));
  }
  if (std::filesystem::remove(options.state_dir + "/policy.json", error))
    removed.push_back("stored policy " + options.state_dir + "/policy.json");
  log::notice("detached", {{"removed", removed.size()}, {"left", left}});
  if (left.empty()) return removed;
  return fail(ErrorKind::internal, "detach_incomplete", "not everything could be removed: " + left,
              "run it again; what is left goes on denying");
}

}  // namespace holdfast
