// The operators' parallel regions on plain threads, as ThreadSanitizer can follow them: the OpenMP library that torch
// brings along is not compiled with it, and what that library orders would be reported as races. These are the three
// functions that GCC calls for at::parallel_for(); torch's own regions keep theirs.
#include <thread>
#include <vector>

#define STCA_OWN extern "C" __attribute__((visibility("hidden")))

extern "C" int omp_get_max_threads();

namespace {
thread_local int own_number = 0, team_size = 1;
}

STCA_OWN void GOMP_parallel(void (*region)(void*), void* data, unsigned wanted, unsigned) {
  const int threads = wanted > 0 ? int(wanted) : omp_get_max_threads();
  const auto run = [&](int number) {
    own_number = number;
    team_size = threads;
    region(data);
  };
  std::vector<std::thread> others;
  for (int number = 1; number < threads; ++number) others.emplace_back(run, number);
  run(0);
  for (std::thread& other : others) other.join();
  own_number = 0;
  team_size = 1;
}

STCA_OWN int omp_get_thread_num() { return own_number; }

STCA_OWN int omp_get_num_threads() { return team_size; }
