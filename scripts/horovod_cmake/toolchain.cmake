# CMake reads this file before Horovod's own (install_horovod.py puts its path into CMAKE_TOOLCHAIN_FILE). It sets no
# compiler: it only asks for a second file to be read right after Horovod's project() line.
set(CMAKE_PROJECT_horovod_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/after_project.cmake")
