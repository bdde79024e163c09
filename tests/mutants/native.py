def mutants():
    return []
