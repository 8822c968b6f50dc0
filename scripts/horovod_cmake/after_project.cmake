# Read by CMake right after the project() line of Horovod 0.28.1. With it the unchanged sources build against a recent
# PyTorch.

# Horovod's bundled Gloo asks for a CMake older than the 4.x series still accepts.
set(CMAKE_POLICY_VERSION_MINIMUM 3.5)

# Horovod asks for C++14; the headers of a recent PyTorch need C++20. Gloo gets the same standard, or the link fails:
# its static constants are plain definitions before C++17 and inline since, so that a mixture of the two defines
# Store::kDefaultTimeout twice.
function(horovod_transformer_use_cxx20)
  foreach(target_name IN ITEMS pytorch gloo)
    if(TARGET ${target_name})
      set_target_properties(${target_name} PROPERTIES CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
    endif()
  endforeach()
endfunction()

# The targets do not exist yet, so the function runs at the end of Horovod's top CMakeLists.txt. It must be a function:
# the arguments of a deferred call are looked up when it runs, and a loop variable of this file is empty by then.
cmake_language(DEFER CALL horovod_transformer_use_cxx20)

# Gloo listens on the interface that HOROVOD_GLOO_IFACE names, for tensors too: see gloo_interface.h.
function(horovod_transformer_use_interface)
  if(TARGET gloo)
    set_source_files_properties(
      "${CMAKE_SOURCE_DIR}/third_party/gloo/gloo/transport/tcp/device.cc" TARGET_DIRECTORY gloo
      PROPERTIES COMPILE_OPTIONS "-include;${CMAKE_CURRENT_FUNCTION_LIST_DIR}/gloo_interface.h")
  endif()
endfunction()
cmake_language(DEFER CALL horovod_transformer_use_interface)

# The next two matter only to the CUDA build.

# pip's NCCL wheel holds libnccl.so.2 but no libnccl.so, the name that Horovod searches for: answer that beforehand.
set(nccl_from_wheel "$ENV{HOROVOD_NCCL_HOME}/lib/libnccl.so.2")
if(DEFINED ENV{HOROVOD_NCCL_HOME} AND EXISTS "${nccl_from_wheel}")
  set(NCCL_LIBRARY "${nccl_from_wheel}" CACHE FILEPATH "NCCL shared library")
endif()

# A second copy of the CUDA kernels, for the C++ ABI that PyTorch gave up. Nothing links it: do not compile it.
function(horovod_transformer_skip_old_abi_kernels)
  if(TARGET compatible_horovod_cuda_kernels)
    set_target_properties(compatible_horovod_cuda_kernels PROPERTIES EXCLUDE_FROM_ALL TRUE)
  endif()
endfunction()
cmake_language(DEFER CALL horovod_transformer_skip_old_abi_kernels)

# And this one only to the CPU build: a CUDA toolkit that merely lies on the machine must not be picked up.
if("$ENV{HOROVOD_TRANSFORMER_IGNORE_CUDA}" STREQUAL "1")
  set(CMAKE_CUDA_COMPILER "CMAKE_CUDA_COMPILER-NOTFOUND")
  set(CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit TRUE)
endif()
