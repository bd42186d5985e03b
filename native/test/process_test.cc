// Calls that would wait for ever are refused: in a child process, and out of a call's own function.
#include <sys/wait.h>
#include <unistd.h>

#include "test/tiny_engine.h"

namespace {

using namespace miudo::test;

// Waits for the child; its exit code, or -1 where a signal ended it.
template <typename Body>
int in_a_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a hang is a failure
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(a_child_process_is_refused_and_may_make_its_own) {
  const EnginePtr e = make_engine(3);
  const std::vector<std::int32_t> ids = some_ids(40);
  std::int64_t k = 0;
  CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
  const std::vector<float> right = all_logits(e.get(), k, ids);
  const int code = in_a_child([&] {
    miudo_error error = {};
    std::size_t length = 0;
    std::int64_t other = 0;
    miudo_work work = work_for(k, ids, MIUDO_WANT_SAMPLE);
    if (miudo_step(e.get(), &work, 1, &error) != MIUDO_REQUEST) return 1;
    if (std::strstr(error.message, "fork") == nullptr) return 2;
    if (miudo_length(e.get(), k, &length, nullptr) != MIUDO_REQUEST) return 3;
    if (miudo_open(e.get(), &other, nullptr) != MIUDO_REQUEST) return 4;
    if (miudo_close(e.get(), k, nullptr) != MIUDO_REQUEST) return 5;
    if (miudo_cache_bytes_used(e.get()) != 0) return 6;
    miudo_destroy(e.get());
    const EnginePtr own = make_engine(1);
    if (miudo_open(own.get(), &other, nullptr) != MIUDO_OK) return 7;
    return all_logits(own.get(), other, ids) == right ? 0 : 8;
  });
  CHECK(code == 0);
  CHECK(miudo_truncate(e.get(), k, 0, nullptr) == MIUDO_OK);
  CHECK(all_logits(e.get(), k, ids) == right);  // the parent goes on
}

struct Inside {
  miudo_engine* engine = nullptr;
  miudo_status status = MIUDO_OK;
};

int call_inside(void* context) {
  Inside& inside = *static_cast<Inside*>(context);
  std::int64_t k = 0;
  if (inside.engine != nullptr) inside.status = miudo_open(inside.engine, &k, nullptr);
  return 0;
}

TEST(an_interrupt_function_that_calls_the_engine_is_refused) {
  Inside inside;
  const EnginePtr e = make_engine(1, 1 << 24, call_inside, &inside);
  const std::vector<std::int32_t> ids = some_ids(40);
  std::int64_t k = 0;
  CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
  inside.engine = e.get();
  miudo_work work = work_for(k, ids, MIUDO_WANT_SAMPLE);
  CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_OK);
  CHECK(inside.status == MIUDO_REQUEST);
}

}  // namespace
