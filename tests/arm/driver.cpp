// Calls functions of a library for a test process of another machine: qemu-user runs this program.
//
// The functions get that process's addresses. A page that they touch is fetched from it when it is touched, and what has
// changed is sent back after the call. `arm_kernels.py` is the other side.

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr std::size_t kPageBytes = 4096, kMaxPages = 1 << 16;

// As `_REQUEST` and `_REPLY` in arm_kernels.py.
struct Request {
  char name[64];
  std::int64_t is_call; // else it is asked whether there is such a function
  std::uint64_t integers[24];
  double numbers[8];
};
enum Kind : std::uint64_t { kDone = 0, kWanted = 1, kChanged = 2, kMissing = 3 };
struct Reply {
  std::uint64_t kind, value;
};

// AArch64 passes eight integers and eight floating-point numbers in registers, the others on the stack, 8 bytes each.
using I = std::uint64_t;
using D = double;
using Function = std::int64_t (*)(I, I, I, I, I, I, I, I, D, D, D, D, D, D, D, D, I, I, I, I, I, I, I, I, I, I, I, I, I,
                                  I, I, I);

struct Page {
  void* at;
  void* before;
};
Page pages[kMaxPages];
std::size_t num_pages = 0;
std::atomic_flag is_fetching = ATOMIC_FLAG_INIT;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "driver: %s\n", what);
  _exit(1);
}

void send(const void* from, std::size_t size) {
  for (auto at = static_cast<const char*>(from); size;) {
    const ssize_t done = write(1, at, size);
    if (done <= 0) _exit(1);
    at += done;
    size -= static_cast<std::size_t>(done);
  }
}

bool receive(void* to, std::size_t size) {
  for (auto at = static_cast<char*>(to); size;) {
    const ssize_t done = read(0, at, size);
    if (done <= 0) return false;
    at += done;
    size -= static_cast<std::size_t>(done);
  }
  return true;
}

void* fresh_page(void* wanted, int protection) {
  void* made = mmap(wanted, kPageBytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED) fail("out of memory");
  return made;
}

// Puts the other process's page where it lies there, filled before any thread sees it.
void fetch(void* at) {
  if (num_pages == kMaxPages) fail("too many pages");
  if (fresh_page(at, PROT_NONE) != at) fail("an address of the test's is taken here; run it again");
  const Reply wanted{kWanted, reinterpret_cast<std::uint64_t>(at)};
  void* filled = fresh_page(nullptr, PROT_READ | PROT_WRITE);
  void* before = fresh_page(nullptr, PROT_READ | PROT_WRITE);
  send(&wanted, sizeof wanted);
  if (!receive(filled, kPageBytes)) fail("the test process has ended");
  std::memcpy(before, filled, kPageBytes);
  if (mremap(filled, kPageBytes, kPageBytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) != at) fail("mremap");
  pages[num_pages++] = {at, before};
}

void on_fault(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  void* at = reinterpret_cast<void*>(address / kPageBytes * kPageBytes);
  while (is_fetching.test_and_set(std::memory_order_acquire)) usleep(50);
  bool is_there = false; // another thread may have fetched it
  for (std::size_t i = 0; i < num_pages && !is_there; ++i) is_there = pages[i].at == at;
  if (!is_there) fetch(at);
  is_fetching.clear(std::memory_order_release);
}

void give_pages_back() {
  for (const Page* page = pages; page < pages + num_pages; ++page) {
    if (std::memcmp(page->at, page->before, kPageBytes)) {
      const Reply changed{kChanged, reinterpret_cast<std::uint64_t>(page->at)};
      send(&changed, sizeof changed);
      send(page->at, kPageBytes);
    }
    munmap(page->at, kPageBytes);
    munmap(page->before, kPageBytes);
  }
  num_pages = 0;
}

std::int64_t call(void* function, const std::uint64_t i[24], const double d[8]) {
  return reinterpret_cast<Function>(function)(i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], d[0], d[1], d[2], d[3],
                                              d[4], d[5], d[6], d[7], i[8], i[9], i[10], i[11], i[12], i[13], i[14],
                                              i[15], i[16], i[17], i[18], i[19], i[20], i[21], i[22], i[23]);
}

} // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) fail(dlerror());
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
  for (Request request; receive(&request, sizeof request);) {
    void* function = dlsym(library, request.name);
    Reply reply{function ? kDone : kMissing, 0};
    if (function && request.is_call) {
      reply.value = static_cast<std::uint64_t>(call(function, request.integers, request.numbers));
      give_pages_back();
    }
    send(&reply, sizeof reply);
  }
}
