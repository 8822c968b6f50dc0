// Included before Gloo's transport/tcp/device.cc while Horovod is built; after_project.cmake asks for it.
//
// Horovod 0.28.1 passes HOROVOD_GLOO_IFACE to Gloo for the connections over which ranks agree on what comes next, and
// forgets it for those that carry tensors. There Gloo listens on the address of the host's own name, which may lead
// nowhere (a container, a laptop), to 127.0.1.1 (Debian), or into a slower network. With this header Gloo gets the
// interface's address wherever it would have asked for that name.

#pragma once

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

// A mark in the library: whoever loads it can tell that it was built with this header.
extern "C" {
__attribute__((visibility("default"), used)) int horovod_transformer_gloo_interface = 1;
}

namespace {

// Writes the first address of the interface that HOROVOD_GLOO_IFACE names, as text; without one, the host's name.
int address_or_host_name(char* text, size_t size) {
  const char* wanted = std::getenv("HOROVOD_GLOO_IFACE");
  struct ifaddrs* all = nullptr;
  if (wanted == nullptr || *wanted == '\0' || getifaddrs(&all) != 0) {
    return gethostname(text, size);
  }
  bool found = false;
  for (struct ifaddrs* each = all; each != nullptr && !found; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || std::strcmp(each->ifa_name, wanted) != 0) {
      continue;
    }
    const int family = each->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) {
      continue;
    }
    const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    found = getnameinfo(each->ifa_addr, length, text, size, nullptr, 0, NI_NUMERICHOST) == 0;
  }
  freeifaddrs(all);
  return found ? 0 : gethostname(text, size);
}

}  // namespace

#define gethostname address_or_host_name
