#include "ffnskip/devices.h"
#include "ffnskip/errors.h"
#include "numbers.h"

#include <ggml-backend.h>

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <set>
#include <stdexcept>

namespace ffnskip {
namespace {

using AddServer = ggml_backend_reg_t (*)(const char * endpoint);

constexpr int k_wait_s = 10;

struct Endpoint {
    std::string host;
    std::string port;
};

Endpoint parsed(const std::string & endpoint) {
    const size_t                 colon = endpoint.rfind(':');
    const std::optional<int64_t> port =
        colon == std::string::npos ? std::nullopt : parse_number<int64_t>(endpoint.substr(colon + 1));
    if (colon == 0 || !port || *port < 1 || *port > 65535) {
        throw std::invalid_argument("rpc: '" + endpoint + "' is no server; HOST:PORT is right");
    }
    return { endpoint.substr(0, colon), endpoint.substr(colon + 1) };
}

AddServer add_server() {
    ggml_backend_load_all();
    const ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    const auto               add =
        rpc == nullptr
            ? nullptr
            : reinterpret_cast<AddServer>(ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server"));
    if (add == nullptr) {
        throw Unsupported(
            "rpc: this llama.cpp was built without RPC; CMAKE_ARGS=\"-DGGML_RPC=on\" pip install llama-cpp-python "
            "builds one with it");
    }
    return add;
}

bool reaches(const addrinfo & address) {
    const int socket_fd = socket(address.ai_family, address.ai_socktype, address.ai_protocol);
    if (socket_fd < 0) {
        return false;
    }
    const timeval wait{ k_wait_s, 0 };
    setsockopt(socket_fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    const bool connected = connect(socket_fd, address.ai_addr, address.ai_addrlen) == 0;
    close(socket_fd);
    return connected;
}

// ggml ends the process where nobody answers.
void require_listening(const std::string & endpoint) {
    const auto [host, port] = parsed(endpoint);
    addrinfo hints{};
    hints.ai_family      = AF_INET;  // as ggml has it
    hints.ai_socktype    = SOCK_STREAM;
    addrinfo * addresses = nullptr;
    const int  status    = getaddrinfo(host.c_str(), port.c_str(), &hints, &addresses);
    if (status != 0) {
        throw std::runtime_error("rpc: " + endpoint + ": " + gai_strerror(status));
    }
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> all(addresses, &freeaddrinfo);
    for (const addrinfo * address = addresses; address != nullptr; address = address->ai_next) {
        if (reaches(*address)) {
            return;
        }
    }
    throw std::runtime_error("rpc: no server answers at " + endpoint);
}

}  // namespace

void add_rpc_servers(const std::vector<std::string> & endpoints) {
    static std::set<std::string> added;
    for (const std::string & endpoint : endpoints) {
        parsed(endpoint);
    }
    if (endpoints.empty()) {
        return;  // of a llama.cpp without RPC, too
    }
    const AddServer add = add_server();
    for (const std::string & endpoint : endpoints) {
        if (added.count(endpoint) != 0) {
            continue;
        }
        require_listening(endpoint);
        const ggml_backend_reg_t server = add(endpoint.c_str());
        if (server == nullptr) {
            throw std::runtime_error("rpc: the server at " + endpoint + " has no device");
        }
        ggml_backend_register(server);
        added.insert(endpoint);
    }
}

}  // namespace ffnskip
