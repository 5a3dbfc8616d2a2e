// Where clouds answer whoever asks with the machine's identity and credentials: addresses that no
// tenant reaches, whatever a policy says. The one list: the policy tables and the nft rules take it
// from here.
#pragma once

#include <string_view>

namespace holdfast {

constexpr std::string_view metadata_addresses[] = {
    "169.254.169.254",  // nearly every cloud's: AWS, Google, Azure, Oracle, DigitalOcean, OpenStack
    "fd00:ec2::254",    // AWS, over IPv6
    "fd20:ce::254",     // Google, over IPv6
    "168.63.129.16",  // Azure WireServer: the guest agent's settings and certificates; its DNS too
    "100.100.100.200",  // Alibaba
    "169.254.170.2",    // AWS ECS: a task's credentials
    "169.254.170.23",   // AWS EKS: a pod's credentials
    "fd00:ec2::23",     // AWS EKS, over IPv6
};

}  // namespace holdfast
