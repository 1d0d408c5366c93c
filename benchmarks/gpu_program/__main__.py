"""python -m benchmarks.gpu_program"""

from benchmarks.gpu_program.command import main

if __name__ == "__main__":
    main()
